# SPDX-License-Identifier: MIT
"""`xenpy protocol`: what the other half of a protocol of your own must know."""

from __future__ import annotations

import argparse
import json

from xenpy.cli.common import Verbs

__all__ = ["add_parser"]

DESCRIPTION = """\
Print a page about the protocol that a file declares: where each field lies, for 32-bit and
64-bit domains; the ring; the keys of both halves in XenStore; the handshake; the records in
C.  It is Markdown, and lines up as plain text.
"""
EPILOG = """\
examples:
  xenpy protocol xor.py               the protocol of its backend
  xenpy protocol words.py:WORDS       a RingProtocol, where there is no backend, or several
  xenpy protocol xor.py --c           the records in C alone, for io/ring.h
  xenpy protocol xor.py --json        all of it, for programs
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "protocol",
        help="print what the other half of a protocol must know",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE.py[:NAME]", help="what declares the protocol")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the page as JSON")
    how.add_argument("--c", action="store_true", help="print the records in C alone")
    parser.set_defaults(run=run, verbose=False, quiet=False)


def run(args: argparse.Namespace) -> int:
    # Here, since it needs the C part, and --help does not.
    from xenpy.cli.own import protocol_in
    from xenpy.protocol_page import page_of
    from xenpy.protocol_text import c_header, markdown

    page = page_of(*protocol_in(args.file))
    if args.json:
        print(json.dumps(page.json(), indent=1))
    else:
        print(c_header(page) if args.c else markdown(page), end="")
    return 0
