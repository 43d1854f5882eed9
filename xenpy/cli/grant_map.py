# SPDX-License-Identifier: MIT
"""`xenpy grant map`: map pages that a domain has granted."""

from __future__ import annotations

import argparse
import json

from xenpy.cli.common import Verbs, domid
from xenpy.cli.errors import UsageError
from xenpy.cli.grant_pages import add_from, add_hold, gref, show, source
from xenpy.cli.hold import Hold
from xenpy.types import PAGE_SIZE

DESCRIPTION = """\
Map pages that domain DOMID has granted to this one, next to each other, and show what is in
them, in hexadecimal or as --to says.  Read-only, unless --write is given.
"""
EPILOG = """\
examples:
  xenpy grant map 7 8 9
  xenpy grant map 7 8 --to page
  echo hello | xenpy grant map 7 8 --write --from -
  xenpy grant map 7 8 --hold --seconds 60

A page that a guest's driver shares with its backend may be looked at, if it is granted to this
domain: references of rings are in XenStore (xenstore-ls).
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "map",
        help="map pages that a domain has granted",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("domid", metavar="DOMID", type=domid, help="who has granted them")
    parser.add_argument("refs", metavar="REF", type=gref, nargs="+", help="grant references")
    parser.add_argument("--write", action="store_true", help="map them for writing")
    add_from(parser, "write this into them; -: standard input (with --write)")
    parser.add_argument(
        "--hold", action="store_true", help="keep them until Enter, SIGTERM or SIGINT"
    )
    add_hold(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # Here, since it needs the C part, and --help does not.
    from xenpy.gnttab import GrantTable

    if args.source is not None and not args.write:
        raise UsageError("--from writes into the pages: give --write as well")
    if args.seconds is not None and not args.hold:
        raise UsageError("--seconds is for --hold")
    content = source(args, len(args.refs) * PAGE_SIZE)
    with GrantTable() as grants, grants.map(args.domid, args.refs, writable=args.write) as pages:
        if content:
            with pages.view(0, len(content)) as view:
                view[:] = content
        if args.hold:
            said = {"domid": args.domid, "refs": args.refs}
            text = f"mapped {' '.join(map(str, args.refs))} of domain {args.domid}"
            with Hold() as here:
                print(json.dumps(said) if args.json else text, flush=True)
                here.wait(args.seconds)
        if args.target is not None or not args.hold:
            with pages.view() as view:
                show(args, bytes(view))
    return 0
