# SPDX-License-Identifier: MIT
"""`xenpy grant share`: give pages to a domain, and hold them."""

from __future__ import annotations

import argparse
import json
from typing import Final

from xenpy.cli.common import Verbs, domid
from xenpy.cli.errors import UsageError
from xenpy.cli.grant_pages import add_from, add_hold, show, source
from xenpy.cli.hold import Hold
from xenpy.types import PAGE_SIZE

MAX_PAGES: Final = 1024

DESCRIPTION = """\
Allocate pages, grant them to domain DOMID, print their references, a line each, and hold them
until Enter, SIGTERM or SIGINT.  A page stays granted for as long as the other side has it mapped.
"""
EPILOG = """\
examples:
  xenpy grant share 7
  xenpy grant share 7 --pages 4 --read-only --from image
  xenpy grant share 7 --seconds 30 --to after     what was in it in the end
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "share",
        help="give pages to a domain, and hold them",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("domid", metavar="DOMID", type=domid, help="who may have them")
    parser.add_argument("--pages", metavar="N", type=int, default=1, help="how many (1)")
    parser.add_argument("--read-only", action="store_true", help="it may not write into them")
    add_from(parser, "what is in them; -: standard input (zeros)")
    add_hold(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # Here, since it needs the C part, and --help does not.
    from xenpy.gnttab import GrantShare

    if not 0 < args.pages <= MAX_PAGES:
        raise UsageError(f"--pages is {args.pages}; 1 to {MAX_PAGES} it can be")
    content = source(args, args.pages * PAGE_SIZE)
    with (
        GrantShare() as share,
        share.share(args.domid, args.pages, writable=not args.read_only) as pages,
        Hold() as here,
    ):
        if content:
            with pages.view(0, len(content)) as view:
                view[:] = content
        refs = [int(ref) for ref in pages.refs]
        print(json.dumps({"refs": refs}) if args.json else "\n".join(map(str, refs)), flush=True)
        here.wait(args.seconds)
        if args.target is not None:
            with pages.view() as view:
                show(args, bytes(view))
    return 0
