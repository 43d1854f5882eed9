# SPDX-License-Identifier: MIT
"""`xenpy grant copy`: have the hypervisor copy out of a page of a domain's, or into it."""

from __future__ import annotations

import argparse
import errno

from xenpy.cli.common import Verbs, add_common_options, domid
from xenpy.cli.errors import UsageError
from xenpy.cli.grant_pages import add_from, add_to, gref, show, source
from xenpy.errors import XenError
from xenpy.types import PAGE_SIZE

DESCRIPTION = """\
Copy out of a page that domain DOMID has granted to this one and show it, in hexadecimal or as
--to says; or copy into it what --from has.  Nothing is mapped: the hypervisor copies.
"""
EPILOG = """\
examples:
  xenpy grant copy 7 8
  xenpy grant copy 7 8 --offset 64 --length 16 --to part
  echo hello | xenpy grant copy 7 8 --from -
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "copy",
        help="copy out of a page of a domain's, or into it",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("domid", metavar="DOMID", type=domid, help="who has granted it")
    parser.add_argument("ref", metavar="REF", type=gref, help="a grant reference")
    parser.add_argument("--offset", metavar="N", type=int, default=0, help="in the page (0)")
    parser.add_argument("--length", metavar="N", type=int, help="bytes (the rest of the page)")
    add_from(parser, "copy this into the page; -: standard input")
    add_to(parser)
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # Here, since they need the C part, and --help does not.
    from xenpy.gnttab import CopySegment, GrantTable
    from xenpy.memory import LocalMemory

    room = PAGE_SIZE - args.offset
    length = room if args.length is None else args.length
    if not 0 <= args.offset < PAGE_SIZE or not 0 < length <= room:
        raise UsageError(f"offset {args.offset} and length {length} are not within a page")
    content = source(args, length)
    if args.source is not None and not content:
        return 0
    with GrantTable() as grants, LocalMemory(PAGE_SIZE) as local:
        foreign = args.domid, args.ref, args.offset
        segment = CopySegment(foreign, (local, 0), length)
        if content:
            with local.view(0, len(content)) as view:
                view[:] = content
            segment = CopySegment((local, 0), foreign, len(content))
        (status,) = grants.copy([segment])
        if status:
            reason = f"Xen says GNTST {status} (grant_table.h)"
            raise XenError(errno.EFAULT, "grant_copy", reason, domid=args.domid, ref=args.ref)
        if not content:
            with local.view(0, length) as view:
                show(args, bytes(view))
    return 0
