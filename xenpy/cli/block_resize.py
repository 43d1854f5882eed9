# SPDX-License-Identifier: MIT
"""`xenpy block resize`: an image has another size by now."""

from __future__ import annotations

import argparse
import asyncio
import json

from xenpy.attach import endpoints, refresh
from xenpy.cli.common import Verbs, add_device_options, plan_of
from xenpy.xenstore import Store

DESCRIPTION = """\
Tell the backend that a disk's image has another size by now.  It looks, and tells the
guest.  Make the image longer first; before you make it shorter, make what is on the disk
smaller in the guest.
"""
EPILOG = """\
example:
  xenpy block resize 7 vdev=xvda
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "resize",
        help="take over the new size of an image",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_device_options(parser, driver="block")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    plan = plan_of(args)
    ends = endpoints(args.domid, plan.frontend_kind, plan.backend_kind, plan.devid, args.backend)

    async def resize() -> None:
        async with Store.open(args.store) as store:
            await refresh(store, ends, timeout=args.timeout)
            sectors = int(await store.read(f"{ends.backend}/sectors"))
        if args.json:
            print(json.dumps({"backend": ends.backend, "sectors": sectors}))
        else:
            print(f"{sectors} sectors")

    asyncio.run(resize())
    return 0
