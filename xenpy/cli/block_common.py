# SPDX-License-Identifier: MIT
"""What the verbs of `xenpy block` share: naming a disk, and opening it."""

from __future__ import annotations

import argparse
import errno
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.cli.common import add_common_options, seconds, size, wrong_usage
from xenpy.cli.errors import UsageError
from xenpy.drivers.block.vdev import parse_vdev
from xenpy.errors import XenError
from xenpy.paths import frontend_path
from xenpy.types import DomId
from xenpy.xenstore import Store

if TYPE_CHECKING:
    from xenpy.drivers.block.front import BlockDevice

__all__ = ["CHUNK", "add_disk_options", "device_path", "opened", "size", "within"]

CHUNK: Final = 4 << 20
"""Bytes read or written at a time."""
KIND: Final = "vbd"
SYSFS: Final = Path("/sys/bus/xen/devices")


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
    if device.startswith("/"):
        return device
    with wrong_usage():
        return frontend_path(domid, KIND, parse_vdev(device))


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
        _leave_to_the_kernel(path)
        async with BlockDevice(
            store, path, wishes=wishes, timeout=args.timeout, answer_bound=args.timeout,
            take_over=args.take_over,
        ) as disk:  # fmt: skip
            yield disk


def _leave_to_the_kernel(path: str) -> None:
    """Two drivers on one device would take each other's rings away."""
    found = re.search(rf"/device/({KIND})/(\d+)$", path)
    if found is None:
        return
    name = f"{found[1]}-{found[2]}"
    driver = SYSFS / name / "driver"
    if driver.exists():
        hint = f"the kernel drives it; echo {name} > {driver.resolve()}/unbind"
        raise XenError(errno.EBUSY, "open", hint, path=path)


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
