# SPDX-License-Identifier: MIT
"""What holds a disk's bytes: the contract that every store and every filter keeps.

Shaped after nbdkit's plugins: a store answers size, read, write and flush, and knows
nothing of Xen.  A store raises OSError; the request that met it is answered with an error.

**Places.**  An offset and a length are multiples of `sector_size`, and a buffer begins at a
multiple of `SECTOR` in memory, as blkif's segments do.  What is not within `size` raises OSError
and changes nothing.

**Durability.**  A write that returned is seen by every later read, and not before it has
returned is the guest told of it.  A flush that returned
has put every write that had returned before it was called on stable storage.  After a
flush has failed every later one fails as well, whoever asks: the kernel reports a lost
write once, and the bytes are gone nevertheless.

**Threads.**  The queues of a disk use its store at the same time: every method but `close`
may run in several threads at once, also with ranges that overlap; each sector then holds
what one of the writers wrote.  `close` comes last, when nothing else runs.  A store in
Python that somebody wrote for his own use may leave all that to `stores.guarded`.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

__all__ = [
    "SECTOR",
    "SECTOR_SIZES",
    "ZEROS",
    "Buffer",
    "Durability",
    "NativeKind",
    "NativeStore",
    "Store",
    "check_buffers",
    "check_range",
    "check_write",
    "total",
]

Buffer: TypeAlias = memoryview

SECTOR: Final = 512
"""Bytes: what blkif counts in."""
SECTOR_SIZES: Final = (512, 1024, 2048, 4096)
"""What a disk's sectors may be, in bytes."""
ZEROS: Final = memoryview(mmap.mmap(-1, 1 << 18)).toreadonly()
"""Mapped rather than allocated, to be aligned for O_DIRECT."""


class NativeKind(Enum):
    """How an engine in C reaches the bytes."""

    FILE = "file"
    """preadv and pwritev on the descriptor; a flush is fdatasync."""
    MEMORY = "memory"
    """A sealed memfd of exactly `size` bytes, to be mapped as well; a flush does nothing."""
    NULL = "null"
    """No descriptor: reads leave the guest's pages as they are, writes vanish."""
    CALLBACK = "callback"
    """No descriptor: the store is called (`callbacks`)."""


@dataclass(frozen=True, slots=True)
class NativeStore:
    """What an engine that knows no Python needs to serve a store by itself.

    Attributes:
        kind: what to do with the descriptor.
        fd: the store's own, valid until its `close`; -1 for `NULL` and `CALLBACK`.
        size: in bytes.
        readonly: writes are refused.
        direct: the descriptor is O_DIRECT.
    """

    kind: NativeKind
    fd: int
    size: int
    readonly: bool
    direct: bool = False


class Store(ABC):
    """A disk's bytes.  What each method promises is at the top of this module.

    Attributes:
        size: in bytes.
        sector_size: what a guest may not read or write less than: bytes, a power of two from
            `SECTOR` to a page.
        block_size: bytes that the store changes in one piece: a hint for the guest.
        readonly: whether `write`, `zero` and `discard` are refused with EROFS.
        discard_granularity: bytes that the store can give back in one piece; 0 if it has no
            `discard`.
        discard_alignment: bytes from the start of the disk to the first such piece.
        discard_erases: nobody can read again what was discarded, by whatever means.
        can_zero: whether `zero` costs less than a write of zeros.
        persistent: let a guest keep its pages granted; what is not mapped is copied.
        volatile: the bytes end with the process, so that no other may take the disk over.
        flush_failed: set for good by whoever serves it.  Nothing is written any more then:
            Linux's blkfront takes a FLUSH that fails for one that is not supported, sends
            no other, and would never hear of the loss.
        parallel: the methods keep the promise about threads; see `stores.guarded`.
    """

    size: int
    sector_size: int = SECTOR
    block_size: int = SECTOR
    readonly: bool = False
    discard_granularity: int = 0
    discard_alignment: int = 0
    discard_erases: bool = False
    can_zero: bool = False
    persistent: bool = True
    volatile: bool = False
    flush_failed: bool = False
    parallel: bool = False

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
            OSError: it may not be.  Every later flush fails as well.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything.  Harmless when closed.

        Raises:
            OSError: what was written may not be what is kept.  All is released even so.
        """

    def measure(self) -> int:
        """The size by now, in bytes; whoever asks sets `size`.

        Raises:
            OSError: it cannot be told.
        """
        return self.size

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

    def discard(self, offset: int, length: int) -> None:
        """Give back what holds these bytes, as far as whole pieces go.  They read as
        anything afterwards, but as nobody else's bytes.

        Raises:
            OSError: EOPNOTSUPP if the store cannot.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def zero(self, offset: int, length: int) -> None:
        """Make bytes zero; by writing them, unless the store knows better.

        Raises:
            OSError: not every byte is zero.
        """
        check_range(self, offset, length)
        while length:
            piece = min(length, len(ZEROS))
            self.write(ZEROS[:piece], offset)
            offset += piece
            length -= piece

    @property
    def native(self) -> NativeStore | None:
        """How to serve it without Python; None if only Python can."""
        return None

    def stats(self) -> Mapping[str, int]:
        """Counters by name, for the disk's own."""
        return {}


class Durability:
    """A flush that fails once fails for ever.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lost: Exception | None = None

    def flush(self, sync: Callable[[], None]) -> None:
        """Run `sync`, unless one has failed.

        One at a time: the kernel tells one of two callers of a lost write, and the other
        would acknowledge it.
        """
        with self._lock:
            if self._lost is not None:
                text = f"an earlier flush failed ({self._lost}): writes are lost"
                raise OSError(errno.EIO, text)
            try:
                sync()
            except Exception as error:
                self._lost = error.with_traceback(None)
                raise


def check_range(store: Store, offset: int, length: int) -> None:
    """Raises OSError (EINVAL) unless `length` bytes at `offset` are within the store."""
    if offset < 0 or length < 0 or offset + length > store.size:
        text = f"{length} bytes at {offset} are not within {store.size}"
        raise OSError(errno.EINVAL, text)


def check_buffers(store: Store, buffers: Sequence[Buffer], offset: int) -> None:
    """`check_range` for buffers that follow each other."""
    end = offset
    for buffer in buffers:
        end += len(buffer)
    if offset < 0 or end > store.size:
        check_range(store, offset, end - offset)


def check_write(store: Store, offset: int, length: int) -> None:
    """`check_range`, and EROFS if the store is read-only."""
    if store.readonly:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    check_range(store, offset, length)


def total(buffers: Sequence[Buffer]) -> int:
    """Bytes in all of them."""
    return sum(map(len, buffers))
