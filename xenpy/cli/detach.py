# SPDX-License-Identifier: MIT
"""`xenpy detach`: take a device away that `xenpy attach` made."""

from __future__ import annotations

import argparse
import asyncio
import json

from xenpy.attach import detach, endpoints
from xenpy.cli.common import Verbs, add_device_options, plan_of
from xenpy.xenstore import Store

DESCRIPTION = """\
Ask for a close, wait until the backend has let go of everything, remove the nodes.
Unmount in the guest first: Linux gives a mounted disk away as readily as an idle one, and
what it had not written is lost.  --force is for a guest that does not answer.
"""
EPILOG = """\
example:
  xenpy detach block 7 vdev=xvda
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "detach",
        help="take a device away",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--force", action="store_true", help="do not ask the frontend")
    add_device_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    plan = plan_of(args)
    ends = endpoints(args.domid, plan.frontend_kind, plan.backend_kind, plan.devid, args.backend)

    async def take_away() -> None:
        async with Store.open(args.store) as store:
            # Of a backend's domain that has died the frontend's half is left.
            if not (await store.exists(ends.backend) or await store.exists(ends.frontend)):
                raise FileNotFoundError(f"there is no device {ends.backend}")
            await detach(store, ends, timeout=args.timeout, force=args.force)
        if args.json:
            print(json.dumps({"removed": ends.backend}))

    asyncio.run(take_away())
    return 0
