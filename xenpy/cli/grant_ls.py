# SPDX-License-Identifier: MIT
"""`xenpy grant ls`: which grants are mapped, and by whom."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict

from xenpy.cli.common import Verbs, add_common_options, domid
from xenpy.cli.table import table
from xenpy.grant_dump import Held, parse

DESCRIPTION = """\
List the grants that somebody uses: whose page, which reference, who has it, and how often it
is mapped for writing and for reading.  In the control domain only.

Xen has no list but what it prints on its console for the debug key g, so the console's ring
gets that, and xl dmesg shows it.  A list that does not fit in is refused: boot Xen with
conring_size=1M then.
"""
EPILOG = """\
examples:
  xenpy grant ls
  xenpy grant ls --of 7              pages of domain 7
  xenpy grant ls --by 0 --count      how many of each domain's domain 0 holds
  xenpy grant ls --json
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "ls",
        help="which grants are mapped, and by whom",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--of", metavar="DOMID", type=domid, help="pages of that domain only")
    parser.add_argument("--by", metavar="DOMID", type=domid, help="held by that domain only")
    parser.add_argument("--count", action="store_true", help="how many, for each two domains")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    add_common_options(parser)
    parser.set_defaults(run=run)


def held_now() -> list[Held]:
    """All that Xen says is held.

    Raises:
        XenError: this is not the control domain.
        ImportError: libxenctrl's part cannot be loaded.
        OSError: the list does not fit into Xen's console ring.
    """
    from xenpy.ctrl import Control

    with Control() as control:
        control.debug_keys("g")
        try:
            return parse(control.console_ring())
        except ValueError as error:
            raise OSError(str(error)) from error


def run(args: argparse.Namespace) -> int:
    found = [
        one for one in held_now() if args.of in (None, one.domid) and args.by in (None, one.holder)
    ]
    if args.count:
        counted = Counter((one.domid, one.holder) for one in found)
        rows = [("OF", "BY", "GRANTS")]
        rows += [(str(of), str(by), str(count)) for (of, by), count in sorted(counted.items())]
        listed = [
            {"domid": of, "holder": by, "grants": count}
            for (of, by), count in sorted(counted.items())
        ]
        print(json.dumps(listed) if args.json else "\n".join(table(rows, right=True)))
    elif args.json:
        print(json.dumps([asdict(one) for one in found]))
    else:
        head = [("OF", "REF", "BY", "FRAME", "WRITE", "READ")]
        print("\n".join(table(head + [_row(one) for one in found], right=True)))
    return 0


def _row(one: Held) -> tuple[str, ...]:
    return (
        str(one.domid), str(one.ref), str(one.holder), f"{one.frame:#x}", str(one.writers),
        str(one.readers),
    )  # fmt: skip
