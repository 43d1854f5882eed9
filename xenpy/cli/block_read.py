# SPDX-License-Identifier: MIT
"""`xenpy block read`: from a disk to standard output."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from hashlib import sha256

from xenpy.cli.block_common import CHUNK, add_disk_options, opened, size, within
from xenpy.cli.common import Verbs
from xenpy.cli.errors import UsageError

DESCRIPTION = """\
Write a disk, or a part of it, to standard output.  With --json the bytes go nowhere, and
what is printed says how many there were and their sha256.
"""
EPILOG = """\
examples:
  xenpy block read xvdb > image
  xenpy block read xvdb --offset 1M --length 512 | hexdump -C
  xenpy block read xvdb --json
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "read",
        help="to standard output",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--offset", metavar="BYTES", type=size, default=0, help="from where (0)")
    parser.add_argument("--length", metavar="BYTES", type=size, help="how many (to the end)")
    add_disk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if not args.json and sys.stdout.isatty():
        raise UsageError("standard output is a terminal; redirect it")
    if args.json:
        digest = sha256()
        count = asyncio.run(_read(args, digest.update))
        print(json.dumps({"read": count, "sha256": digest.hexdigest()}))
    else:
        asyncio.run(_read(args, sys.stdout.buffer.write))
        sys.stdout.buffer.flush()
    return 0


async def _read(args: argparse.Namespace, put: Callable[[bytes], object]) -> int:
    """Hand the bytes to `put`, in a thread of its own, while the next ones are read."""
    async with opened(args) as disk:
        offset, length = within(args, disk)
        # What the disk can read begins and ends at a sector.
        start = offset - offset % disk.sector_size
        end = offset + length
        end += -end % disk.sector_size
        putting: asyncio.Future[object] | None = None
        for chunk in range(start, end, CHUNK):
            content = await disk.pread(min(CHUNK, end - chunk), chunk)
            part = content[max(0, offset - chunk) : offset + length - chunk]
            if putting is not None:
                await putting
            putting = asyncio.ensure_future(asyncio.to_thread(put, part))
        if putting is not None:
            await putting
    return length
