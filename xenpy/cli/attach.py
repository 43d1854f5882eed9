# SPDX-License-Identifier: MIT
"""`xenpy attach`: make a device without a toolstack."""

from __future__ import annotations

import argparse
import asyncio
import json

from xenpy.attach import attach
from xenpy.cli.common import Verbs, add_device_options, plan_of
from xenpy.xenstore import Store

DESCRIPTION = """\
Write the XenStore nodes of a device and wait until its backend serves it.
A daemon must serve the kind (`xenpy serve DRIVER`).  Needed for Xen 4.17, whose xl
refuses backendtype=tap, and for kinds that xl does not know.
"""
EPILOG = """\
block takes: vdev=xvda  target=/path/to/image  mode=w|r (w)  device-type=disk|cdrom (disk)

example:
  xenpy attach block 7 vdev=xvda target=/srv/web.img
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "attach",
        help="make a device and wait until it is served",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_device_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    plan = plan_of(args)

    async def make() -> None:
        async with Store.open(args.store) as store:
            ends = await attach(
                store, args.domid, plan, backend_domid=args.backend, timeout=args.timeout
            )
        if args.json:
            print(json.dumps({"frontend": ends.frontend, "backend": ends.backend}))
        else:
            print(f"{plan.backend_kind}/{args.domid}/{plan.devid}")

    asyncio.run(make())
    return 0
