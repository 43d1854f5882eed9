# SPDX-License-Identifier: MIT
"""Raw files and block devices, and whatever else is bytes behind a descriptor."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable, Sequence
from typing import Final

from xenpy.drivers.block.discard import (
    RANGE,
    SPACE_RESV,
    can_punch,
    device_limits,
    discard_device,
    punch_hole,
)
from xenpy.drivers.block.store import (
    SECTOR,
    Buffer,
    Durability,
    NativeKind,
    NativeStore,
    Store,
    check_buffers,
    check_write,
    total,
)

__all__ = ["PAGE_CACHE_BLOCK", "DescriptorStore", "FileStore"]

IOV_MAX: Final = 1024
PAGE_CACHE_BLOCK: Final = 4096

BLKSSZGET: Final = 0x1268
"""linux/fs.h: the size below which a block device reads and writes nothing."""
BLKPBSZGET: Final = 0x127B
"""linux/fs.h: the size that a block device writes in one piece."""
BLKZEROOUT: Final = 0x127F
FS_IOC_ZERO_RANGE: Final = 0x40305839
"""linux/falloc.h: fallocate with FALLOC_FL_ZERO_RANGE; see `discard`."""
UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOTTY)


class DescriptorStore(Store):
    """Bytes that preadv and pwritev reach.

    Args:
        fd: open for reading, and for writing unless `readonly`; the store closes it.
        size: in bytes.
        readonly: whether `write` is refused.
    """

    parallel = True

    def __init__(self, fd: int, size: int, *, readonly: bool) -> None:
        self.size = size
        self.readonly = readonly
        self._fd = fd

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}(fd={self._fd}, size={self.size}, readonly={self.readonly})"

    def readinto(self, buffer: Buffer, offset: int) -> None:
        self.readv([buffer], offset)

    def write(self, buffer: Buffer, offset: int) -> None:
        self.writev([buffer], offset)

    def readv(self, buffers: Sequence[Buffer], offset: int) -> None:
        check_buffers(self, buffers, offset)
        # An image that was cut off under us: to answer with zeros would be a lie.
        self._move(os.preadv, buffers, offset, "the image ends before")

    def writev(self, buffers: Sequence[Buffer], offset: int) -> None:
        check_write(self, offset, total(buffers))
        self._move(os.pwritev, buffers, offset, "nothing could be written at")

    def _move(
        self,
        call: Callable[[int, Sequence[Buffer], int], int],
        buffers: Sequence[Buffer],
        offset: int,
        failure: str,
    ) -> None:
        """All of the buffers, in as many calls as it takes."""
        rest = list(buffers)
        while rest:
            count = call(self._fd, rest[:IOV_MAX], offset)
            if count == 0:
                raise OSError(errno.EIO, f"{failure} byte {offset}")
            offset += count
            _advance(rest, count)

    def flush(self) -> None:
        """Nothing to do, where nothing outlives the process."""

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class FileStore(DescriptorStore):
    """A raw image: a regular file or a block device.

    Args:
        fd: open for reading, and for writing unless `readonly`; the store closes it.
        readonly: whether `write` is refused.
        direct: go past the page cache, where image and file system can do that in pieces
            of `sector_size`; where not, `native.direct` tells.

    Raises:
        OSError: neither a regular file nor a block device.  `fd` is left open.
    """

    def __init__(self, fd: int, *, readonly: bool, direct: bool = False) -> None:
        status = os.fstat(fd)
        self._is_device = stat.S_ISBLK(status.st_mode)
        if self._is_device:
            self.sector_size, self.block_size = _size_of(fd, BLKSSZGET), _size_of(fd, BLKPBSZGET)
        elif stat.S_ISREG(status.st_mode):
            self.block_size = PAGE_CACHE_BLOCK
        else:
            raise OSError(errno.EINVAL, "neither a regular file nor a block device")
        super().__init__(fd, _size(fd), readonly=readonly)
        self._durability = Durability()
        self._direct = direct and _go_direct(fd, self.sector_size)
        self.can_zero = not readonly
        if not readonly and self._is_device:
            limits = device_limits(status.st_rdev)
            self.discard_granularity, self.discard_alignment = limits
        elif not readonly and can_punch(fd):
            self.discard_granularity = PAGE_CACHE_BLOCK

    @property
    def native(self) -> NativeStore:
        return NativeStore(NativeKind.FILE, self._fd, self.size, self.readonly, self._direct)

    def measure(self) -> int:
        return _size(self._fd)

    def flush(self) -> None:
        self._durability.flush(lambda: os.fdatasync(self._fd))

    def discard(self, offset: int, length: int) -> None:
        check_write(self, offset, length)
        if length == 0:
            return
        if not self._is_device:
            punch_hole(self._fd, offset, length)
            return
        # A device takes whole blocks only; a guest's sectors may be smaller.
        start = -(-offset // self.block_size) * self.block_size
        end = (offset + length) // self.block_size * self.block_size
        if start < end:
            discard_device(self._fd, start, end - start)

    def zero(self, offset: int, length: int) -> None:
        check_write(self, offset, length)
        if length and not (self.can_zero and self._zero_range(offset, length)):
            super().zero(offset, length)

    def _zero_range(self, offset: int, length: int) -> bool:
        """Let the kernel do it.  Returns False if it cannot."""
        try:
            if self._is_device:
                fcntl.ioctl(self._fd, BLKZEROOUT, RANGE.pack(offset, length))
            else:
                # Not a hole: a later write into it could find the file system full.
                space = SPACE_RESV.pack(0, os.SEEK_SET, offset, length, 0, 0)
                fcntl.ioctl(self._fd, FS_IOC_ZERO_RANGE, space)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                self.can_zero = False
            elif error.errno != errno.EINVAL or not self._is_device:
                raise
            # EINVAL: less than a block of the device's.
            return False
        return True


def _size(fd: int) -> int:
    """Bytes, of a file or a device."""
    return os.lseek(fd, 0, os.SEEK_END)


def _size_of(fd: int, request: int) -> int:
    """One of a block device's sizes, in bytes."""
    size: int = struct.unpack("I", fcntl.ioctl(fd, request, bytes(4)))[0]
    return size


def _go_direct(fd: int, sector_size: int) -> bool:
    """Switch to O_DIRECT if that works in pieces of `sector_size`.

    A file on a device of 4096-byte sectors refuses half of what a guest sends.  To do that
    half through the page cache is no way out: of two queues that write different sectors of
    one page, one each way, the page cache's would undo the other's.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    # From the second sector on, and in memory at `SECTOR`, as a segment may be.
    with mmap.mmap(-1, 2 * mmap.PAGESIZE) as memory, memoryview(memory) as pages:
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            with pages[SECTOR : SECTOR + sector_size] as sector:
                os.preadv(fd, [sector], sector_size)
        except OSError:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
            return False
    return True


def _advance(buffers: list[Buffer], count: int) -> None:
    """Take the first `count` bytes off a list of buffers."""
    while buffers and count >= len(buffers[0]):
        count -= len(buffers.pop(0))
    if count:
        buffers[0] = buffers[0][count:]
