# SPDX-License-Identifier: MIT
"""What the verbs of `xenpy block` share: naming a disk, and opening it."""

from __future__ import annotations

import argparse
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from xenpy.cli.common import add_common_options, seconds, size, wrong_usage
from xenpy.cli.errors import UsageError
from xenpy.drivers.block import front_place
from xenpy.types import DomId
from xenpy.xenstore import Store

if TYPE_CHECKING:
    from xenpy.drivers.block.front import BlockDevice

__all__ = ["CHUNK", "add_disk_options", "device_path", "opened", "size", "within"]

CHUNK: Final = 4 << 20
"""Bytes read or written at a time."""
SYSFS: Final = front_place.SYSFS


def add_disk_options(parser: argparse.ArgumentParser) -> None:
    """Arguments that name a disk and say how to connect to it."""
    parser.add_argument(
        "device", metavar="DEVICE",
        help="xvdb, its number, or its frontend's directory in XenStore",
    )  # fmt: skip
    parser.add_argument("--queues", metavar="N", type=int, default=1, help="rings (1)")
    parser.add_argument(
        "--ring-page-order", metavar="N", type=int, default=2, help="2^N pages a ring (2)"
    )
    parser.add_argument(
        "--max-segments", metavar="N", type=int, default=256, help="pages a request (256)"
    )
    parser.add_argument(
        "--take-over", action="store_true", help="from a frontend that died without closing"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=seconds, default=30.0,
        help="how long to wait for the backend (30)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_common_options(parser)


def device_path(device: str, domid: DomId) -> str:
    """The frontend's directory of what the command line names.

    Raises:
        UsageError: it names nothing.
    """
    with wrong_usage():
        return front_place.device_path(device, domid)


@asynccontextmanager
async def opened(args: argparse.Namespace) -> AsyncGenerator[BlockDevice]:
    """The disk that `args` name, connected.

    Raises:
        UsageError: an option is out of range.
        XenError: EBUSY, the kernel has the disk; and what `BlockDevice` raises.
    """
    # Here, so that the command line is there without the C part, and can say so.
    from xenpy.drivers.block.front import BlockDevice
    from xenpy.drivers.block.front_link import Wishes

    with wrong_usage():
        wishes = Wishes(
            queues=args.queues,
            ring_page_order=args.ring_page_order,
            max_segments=args.max_segments,
        )
    async with Store.open(args.store) as store:
        path = device_path(args.device, await store.domid())
        front_place.leave_to_the_kernel(path, SYSFS)
        async with BlockDevice(
            store, path, wishes=wishes, timeout=args.timeout, answer_bound=args.timeout,
            take_over=args.take_over,
        ) as disk:  # fmt: skip
            yield disk


def within(args: argparse.Namespace, disk: BlockDevice) -> tuple[int, int]:
    """`--offset` and `--length` on this disk; without `--length`, to its end.

    Raises:
        UsageError: that is no part of the disk.
    """
    offset: int = args.offset
    length: int = disk.size - offset if args.length is None else args.length
    if offset > disk.size or offset + length > disk.size:
        raise UsageError(f"{length} bytes at {offset} of a disk of {disk.size} bytes")
    return offset, length
