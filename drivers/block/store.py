# SPDX-License-Identifier: MIT
"""What holds a disk's bytes: the contract, and files and block devices behind it.

Shaped after nbdkit's plugins: a store answers size, read, write and flush, and knows
nothing of Xen.  A store raises OSError; the request that met it is answered with an error.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, TypeAlias

__all__ = ["Buffer", "FileStore", "Store"]

Buffer: TypeAlias = memoryview

IOV_MAX: Final = 1024
BLKPBSZGET: Final = 0x127B
"""linux/fs.h: the size that a block device writes in one piece."""
PAGE_CACHE_BLOCK: Final = 4096


class Store(ABC):
    """A disk's bytes.  Used by one thread at a time.

    Attributes:
        size: in bytes.
        block_size: bytes that the store changes in one piece: a hint for the guest.
        readonly: whether `write` is refused.
    """

    size: int
    block_size: int = 512
    readonly: bool = False

    @abstractmethod
    def readinto(self, buffer: Buffer, offset: int) -> None:
        """Fill the whole of `buffer` with the bytes at `offset`.

        Raises:
            OSError: not every byte could be read.  What `buffer` holds is undefined then.
        """

    @abstractmethod
    def write(self, buffer: Buffer, offset: int) -> None:
        """Write the whole of `buffer` at `offset`.

        Raises:
            OSError: not every byte was written.
        """

    @abstractmethod
    def flush(self) -> None:
        """Return when everything written before is on stable storage.

        Raises:
            OSError: it may not be.  Every later flush must fail as well: the kernel
                reports a lost write once, and the bytes are gone nevertheless.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything.  Harmless when closed."""

    def readv(self, buffers: Sequence[Buffer], offset: int) -> None:
        """`readinto` for buffers that follow each other on the disk."""
        for buffer in buffers:
            self.readinto(buffer, offset)
            offset += len(buffer)

    def writev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """`write` for buffers that follow each other on the disk."""
        for buffer in buffers:
            self.write(buffer, offset)
            offset += len(buffer)


class FileStore(Store):
    """A raw image: a regular file or a block device, through the page cache.

    Args:
        fd: open for reading, and for writing unless `readonly`; the store closes it.
        readonly: whether `write` is refused.

    Raises:
        OSError: neither a regular file nor a block device.  `fd` is left open.
    """

    def __init__(self, fd: int, *, readonly: bool) -> None:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            self.size = status.st_size
            self.block_size = PAGE_CACHE_BLOCK
        elif stat.S_ISBLK(status.st_mode):
            self.size = os.lseek(fd, 0, os.SEEK_END)
            answer = fcntl.ioctl(fd, BLKPBSZGET, bytes(4))
            self.block_size = struct.unpack("I", answer)[0]
        else:
            raise OSError(errno.EINVAL, "neither a regular file nor a block device")
        self.readonly = readonly
        self._fd = fd
        self._lost: OSError | None = None

    def __repr__(self) -> str:
        return f"FileStore(fd={self._fd}, size={self.size}, readonly={self.readonly})"

    def readinto(self, buffer: Buffer, offset: int) -> None:
        self.readv([buffer], offset)

    def write(self, buffer: Buffer, offset: int) -> None:
        self.writev([buffer], offset)

    def readv(self, buffers: Sequence[Buffer], offset: int) -> None:
        rest = list(buffers)
        while rest:
            count = os.preadv(self._fd, rest[:IOV_MAX], offset)
            if count == 0:
                # The image was cut off under us.  To answer with zeros would be a lie.
                raise OSError(errno.EIO, f"the image ends before byte {offset}")
            offset += count
            _advance(rest, count)

    def writev(self, buffers: Sequence[Buffer], offset: int) -> None:
        if self.readonly:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        rest = list(buffers)
        while rest:
            count = os.pwritev(self._fd, rest[:IOV_MAX], offset)
            if count == 0:
                raise OSError(errno.EIO, f"nothing could be written at byte {offset}")
            offset += count
            _advance(rest, count)

    def flush(self) -> None:
        if self._lost is not None:
            text = f"an earlier flush failed ({self._lost.strerror}): writes are lost"
            raise OSError(errno.EIO, text)
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._lost = error
            raise

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _advance(buffers: list[Buffer], count: int) -> None:
    """Take the first `count` bytes off a list of buffers."""
    while buffers and count >= len(buffers[0]):
        count -= len(buffers.pop(0))
    if count:
        buffers[0] = buffers[0][count:]
