# SPDX-License-Identifier: MIT
"""How the bytes of a file or a block device are given back.

Python has no fallocate(2) with a mode.  FS_IOC_UNRESVSP is the same call by another door:
fallocate with FALLOC_FL_PUNCH_HOLE and FALLOC_FL_KEEP_SIZE, on every file system since
Linux 5.5 (fs/ioctl.c, ioctl_preallocate).
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

__all__ = ["can_punch", "device_limits", "discard_device", "punch_hole"]

FS_IOC_UNRESVSP: Final = 0x4030582B
SPACE_RESV: Final = struct.Struct("@hhqqiI16x")
"""linux/falloc.h, struct space_resv of 64-bit Linux: type, whence, start, length, sysid, pid."""
BLKDISCARD: Final = 0x1277
RANGE: Final = struct.Struct("=QQ")
"""linux/fs.h: start and length in bytes."""
BLOCK: Final = 4096
SYS: Final = Path("/sys/dev/block")


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give back the blocks behind these bytes of a file, which read as zeros afterwards.

    Raises:
        OSError: EOPNOTSUPP if the file system cannot.
    """
    fcntl.ioctl(fd, FS_IOC_UNRESVSP, SPACE_RESV.pack(0, os.SEEK_SET, offset, length, 0, 0))


def can_punch(fd: int) -> bool:
    """Whether a file's blocks can be given back.  Tried behind its end, where nothing is."""
    try:
        punch_hole(fd, -(-os.fstat(fd).st_size // BLOCK) * BLOCK, BLOCK)
    except OSError:
        return False
    return True


def discard_device(fd: int, offset: int, length: int) -> None:
    """Discard whole blocks of a device.  What they read as afterwards, the device knows.

    Raises:
        OSError: EOPNOTSUPP if the device cannot; EINVAL if these are no whole blocks.
    """
    fcntl.ioctl(fd, BLKDISCARD, RANGE.pack(offset, length))


def device_limits(number: int) -> tuple[int, int]:
    """Granularity and alignment of what a block device can discard, in bytes; 0, 0 if it
    cannot.

    Args:
        number: of the device, st_rdev.
    """
    node = SYS / f"{os.major(number)}:{os.minor(number)}"
    # A partition has the queue of its disk.
    queue = next((path for path in (node / "queue", node / "../queue") if path.exists()), None)
    if queue is None or int((queue / "discard_max_bytes").read_text()) == 0:
        return 0, 0
    alignment = int((node / "discard_alignment").read_text())
    return int((queue / "discard_granularity").read_text()), alignment
