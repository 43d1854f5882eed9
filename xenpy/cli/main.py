# SPDX-License-Identifier: MIT
"""Parses the command line and runs a verb.

Exit status: 0 done; 1 failed; 2 wrong usage; 77 this machine cannot (no Xen here).
Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from xenpy import __version__
from xenpy.backend import DeviceError
from xenpy.cli import attach, detach, serve
from xenpy.errors import XenConnectionError, XenError, XenNotFoundError
from xenpy.service import KindTakenError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_XEN = 77

EPILOG = """\
examples:
  xenpy serve block                                   serve disks of stock guests
  xl block-attach web 'vdev=xvdb,backendtype=tap,script=block-xenpy,access=w,target=/srv/web.img'
  xenpy attach block 7 vdev=xvdb target=/srv/web.img  the same without xl (Xen 4.17)
  xenpy detach block 7 vdev=xvdb
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xenpy",
        description="Xen paravirtual drivers in Python.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"xenpy {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (serve, attach, detach):
        verb.add_parser(verbs)
    return parser


def _complain(text: object) -> None:
    print(f"xenpy: {text}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.  Returns the exit status."""
    args = _parser().parse_args(argv)
    level = logging.DEBUG if args.verbose else logging.WARNING if args.quiet else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(message)s")
    try:
        return int(args.run(args))
    except ValueError as error:
        _complain(error)
        return EXIT_USAGE
    except (XenNotFoundError, XenConnectionError, ImportError) as error:
        _complain(error)
        return EXIT_NO_XEN
    except (DeviceError, KindTakenError, XenError, OSError) as error:
        _complain(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return 128 + 2
