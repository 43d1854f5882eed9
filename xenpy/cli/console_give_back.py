# SPDX-License-Identifier: MIT
"""`xenpy console give-back`: after a take that was killed."""

from __future__ import annotations

import argparse
import asyncio
import json

from xenpy.cli.common import Verbs, add_common_options, domid
from xenpy.xenstore import Store

DESCRIPTION = """\
Let xenconsoled serve a guest's first console again, after a `xenpy console take` that was
killed (one that ends by itself, or by SIGTERM, does so).  Until then the guest's output waits,
and the guest with it, once 2 KiB are full.
"""
EPILOG = """\
example:
  xenpy console give-back 7
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "give-back",
        help="hand a console back whose taker was killed",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("domid", metavar="DOMID", type=domid, help="whose")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from xenpy.drivers.console.primary import give_back

    async def give() -> bool:
        async with Store.open(args.store) as store:
            return await give_back(store, args.domid)

    taken = asyncio.run(give())
    if args.json:
        print(json.dumps({"domid": args.domid, "taken": taken}))
    elif not taken:
        print("nobody had taken it")
    return 0
