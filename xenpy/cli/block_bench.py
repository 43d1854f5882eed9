# SPDX-License-Identifier: MIT
"""`xenpy block bench`: how fast a backend answers."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from xenpy.cli.block_common import add_disk_options, opened, size
from xenpy.cli.common import Verbs, seconds
from xenpy.cli.errors import UsageError

if TYPE_CHECKING:
    from xenpy.drivers.block.front import BlockDevice

DESCRIPTION = """\
Keep so many requests in flight for a while, and count the answers.  The frontend is Python:
what it costs is in the figures, so that they compare backends, not disks.
"""
EPILOG = """\
examples:
  xenpy block bench xvdb
  xenpy block bench xvdb --op read --size 64K --depth 8 --seconds 10
  xenpy block bench xvdb --op randwrite --destroy --json
"""
OPERATIONS = ("read", "randread", "write", "randwrite", "flush")


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "bench",
        help="how fast it is",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--op", choices=OPERATIONS, default="randread", help="(randread)")
    parser.add_argument(
        "--size", metavar="BYTES", type=size, default=4096, help="of one request (4K)"
    )
    parser.add_argument(
        "--depth", metavar="N", type=int, default=32, help="requests in flight (32)"
    )
    parser.add_argument(
        "--seconds", metavar="SECONDS", type=seconds, default=5.0, help="how long (5)"
    )
    parser.add_argument(
        "--destroy", action="store_true", help="what is on the disk may be overwritten"
    )
    add_disk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.op.endswith("write") and not args.destroy:
        raise UsageError(f"{args.op} overwrites the disk; --destroy says that it may")
    if args.depth < 1:
        raise UsageError(f"depth is {args.depth}; give 1 or more")

    async def measure() -> dict[str, float | str]:
        async with opened(args) as disk:
            return await _measure(disk, args)

    found = asyncio.run(measure())
    if args.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name.replace('_', ' '):14}{value}")
    return 0


async def _measure(disk: BlockDevice, args: argparse.Namespace) -> dict[str, float | str]:
    if args.op != "flush" and not 0 < args.size <= disk.size:
        raise UsageError(f"{args.size} bytes a request, on a disk of {disk.size} bytes")
    ask = _asking(disk, args.op, args.size)
    loop = asyncio.get_running_loop()
    begin, cpu = loop.time(), time.process_time()
    end = begin + args.seconds
    latencies: list[float] = []

    async def worker() -> None:
        while (now := loop.time()) < end:
            await ask()
            latencies.append(loop.time() - now)

    await asyncio.gather(*(worker() for _ in range(args.depth)))
    elapsed, spent = loop.time() - begin, time.process_time() - cpu
    if not latencies:
        raise UsageError(f"{args.seconds} seconds are over before the first request; give more")
    latencies.sort()
    count = len(latencies)
    moved = 0 if args.op == "flush" else count * args.size
    return {
        "operation": args.op,
        "requests": count,
        "seconds": round(elapsed, 3),
        "per_second": round(count / elapsed, 1),
        "mib_per_second": round(moved / elapsed / (1 << 20), 2),
        "mean_ms": round(sum(latencies) / count * 1e3, 3),
        "median_ms": round(latencies[count // 2] * 1e3, 3),
        "p99_ms": round(latencies[count * 99 // 100] * 1e3, 3),
        "cpu_seconds": round(spent, 3),
    }


def _asking(disk: BlockDevice, operation: str, length: int) -> Callable[[], Awaitable[object]]:
    """What one request is."""
    if operation == "flush":
        return disk.flush
    offsets = _offsets(disk.size // length, length, at_random=operation.startswith("rand"))
    if operation.endswith("write"):
        content = random.Random(1).randbytes(length)
        return lambda: disk.pwrite(content, next(offsets))
    return lambda: disk.pread(length, next(offsets))


def _offsets(places: int, length: int, *, at_random: bool) -> Iterator[int]:
    rng = random.Random(1)
    place = 0
    while True:
        yield place * length
        place = rng.randrange(places) if at_random else (place + 1) % places
