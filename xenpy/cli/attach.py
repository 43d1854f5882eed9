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
block takes: vdev=xvda  target=TARGET  mode=w|r (w)  device-type=disk|cdrom (disk)
             discard-enable=1|0 (1 for mode=w): may the guest give blocks back
             sector-unit=512|sector-size: what the guest counts in on larger sectors
             filter='NAME[,key=value] ...'; `xenpy serve --help` lists the filters

targets of block:
  /path/to/image               a raw file or block device
  memory:SIZE                  lost when the daemon ends
  null:SIZE                    moves nothing: writes vanish, reads leave the page as it is
  nbd:unix:/path, nbd://host[:port]/export, nbd+unix:///export?socket=/path
                               an NBD server: qcow2 and others through qemu-nbd
  python:/path/to/file.py:Class?key=value
                               a store of your own; the daemon has to run with python=1
  xen:xvdb                     a disk that another backend serves to the daemon's domain

examples:
  xenpy attach block 7 vdev=xvda target=/srv/web.img
  xenpy attach block 7 vdev=xvdb target=memory:64M filter='stats delay,read=5'
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
