# SPDX-License-Identifier: MIT
"""`xenpy run`: serve a backend that is one file; and `main`, the end of such a file."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from xenpy.cli.common import Verbs, add_common_options
from xenpy.cli.serve import add_daemon_options, serve_as_told
from xenpy.suggest import Suggestions

if TYPE_CHECKING:
    from xenpy.ring_backend import Backend
    from xenpy.ring_protocol import RequestT, ResponseT
    from xenpy.stream_backend import StreamBackend

__all__ = ["add_parser", "main"]

DESCRIPTION = """\
Serve every device of the protocol that a file declares, until SIGTERM or SIGINT.  The file
has a class of xenpy.Backend or xenpy.StreamBackend; its protocol's name is the kind below backend/.
"""
EPILOG = """\
examples:
  xenpy run xor.py                    serve
  xenpy run xor.py:Xor -v             where the file has several; trace every state step
  xenpy run xor.py --suggest          what do frontends use that it does not know?
  xenpy attach xor.py 7               give domain 7 a device of it
  xenpy detach xor.py 7
  python3 xor.py                      the same as xenpy run, if it ends with xenpy.main(Xor)
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "run",
        help="serve a backend of your own, a file",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE.py[:CLASS]", help="what declares the backend")
    add_daemon_options(parser, "the protocol's name")
    parser.add_argument(
        "--suggest", action="store_true",
        help="at the end, print what frontends used and nobody looked at, with stubs",
    )  # fmt: skip
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # Here, since it needs the C part, and --help does not.
    from xenpy.cli.own import driver_in

    suggestions = Suggestions() if args.suggest else None
    status = serve_as_told(args, driver_in(args.file, suggestions), {})
    if suggestions is not None:
        print(suggestions)
    return status


def main(backend: type[Backend[RequestT, ResponseT]] | type[StreamBackend]) -> None:
    """The end of a file that declares `backend`: if it is run as a program, serve as `xenpy run`
    does, with the program's arguments, and exit.  Imported, it does nothing."""
    if backend.__module__ != "__main__":
        return
    from xenpy.cli.main import main as command_line

    file = sys.modules["__main__"].__file__
    sys.exit(command_line(["run", f"{file}:{backend.__name__}", *sys.argv[1:]]))
