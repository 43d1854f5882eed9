# SPDX-License-Identifier: MIT
"""`xenpy block write`: from standard input to a disk."""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import sys
from typing import TYPE_CHECKING

from xenpy.cli.block_common import CHUNK, add_disk_options, opened, size
from xenpy.cli.common import Verbs
from xenpy.errors import XenError

if TYPE_CHECKING:
    from xenpy.drivers.block.front import BlockDevice

DESCRIPTION = """\
Write standard input to a disk, then flush: status 0 means that all of it is on stable
storage, or, where the backend offers no flush, that the backend has taken it.
"""
EPILOG = """\
examples:
  xenpy block write xvdb < image
  xenpy block write xvdb --offset 1M < part
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "write",
        help="from standard input",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--offset", metavar="BYTES", type=size, default=0, help="whole sectors, to where (0)"
    )
    add_disk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    async def write() -> tuple[int, bool]:
        async with opened(args) as disk:
            return await _write(disk, args.offset), await _flush(disk)

    count, flushed = asyncio.run(write())
    if not flushed:
        print("xenpy: the backend offers no flush", file=sys.stderr)
    if args.json:
        print(json.dumps({"written": count, "flushed": flushed}))
    return 0


async def _write(disk: BlockDevice, offset: int) -> int:
    """Until the end of the input.  Returns how many bytes."""
    written = 0
    while True:
        content = await asyncio.to_thread(sys.stdin.buffer.read, CHUNK)
        rest = -len(content) % disk.sector_size
        if rest:
            # The end of the input is in the middle of a sector, of which the rest stays.
            start = offset + len(content) + rest - disk.sector_size
            sector = await disk.pread(disk.sector_size, start)
            await disk.pwritev([content, sector[-rest:]], offset)
        else:
            await disk.pwrite(content, offset)
        written += len(content)
        offset += len(content)
        if len(content) < CHUNK:
            return written


async def _flush(disk: BlockDevice) -> bool:
    try:
        await disk.flush()
    except XenError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    return True
