# SPDX-License-Identifier: MIT
"""`xenpy block info`: what a disk is and what its backend offers."""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import asdict

from xenpy.cli.block_common import add_disk_options, opened
from xenpy.cli.common import Verbs

DESCRIPTION = """\
Connect to a disk, say what its backend offers and what was agreed on, and close it again.
"""
EPILOG = """\
examples:
  xenpy block info xvdb
  xenpy block info 51728 --json
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "info",
        help="what the disk is",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_disk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    async def look() -> dict[str, object]:
        async with opened(args) as disk:
            front = disk.front
            queues = front.link.queues
            return {
                "frontend": front.context.ends.path,
                "backend": str(front.context.ends.backend),
                "size": disk.size,
                **asdict(disk.disk),
                "queues": len(queues),
                "ring_pages": len(queues[0].ring_refs),
                "depth": sum(queue.depth for queue in queues),
            }

    found = asyncio.run(look())
    if args.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name.replace('_', ' '):22}{_shown(value)}")
    return 0


def _shown(value: object) -> object:
    return ("no", "yes")[value] if isinstance(value, bool) else value
