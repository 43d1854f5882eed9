# SPDX-License-Identifier: MIT
"""`cow,overlay=FILE`: what the guest writes goes into a file beside the image, which is only read.

The overlay is a sparse file: a header, a bitmap of the clusters that it holds, and those
clusters, each as far behind `data` as it is behind the beginning of the disk.

**Order.**  A bit on stable storage whose cluster is not would turn good old sectors into
zeros when the power fails.  So a flush first syncs the clusters, then writes the bits that
were set before that sync began, then syncs those.  What had not been flushed is lost with
the daemon, as it is lost with a disk's cache: a bit that was never written does not count.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xenpy.backend import DeviceError
from xenpy.drivers.block.filters.base import Filter, FilterPlace
from xenpy.drivers.block.store import (
    Buffer,
    Durability,
    Store,
    check_range,
    check_write,
    total,
)
from xenpy.drivers.block.stores.file import DescriptorStore
from xenpy.words import Words

__all__ = ["CLUSTER", "Cow", "CowFilter"]

CLUSTER: Final = 4096
"""Bytes: a page cache's block, so that most guests never write half a cluster."""
BLOCK: Final = 4096
"""Bytes of the bitmap that are written at once; the header's size."""
HEADER: Final = struct.Struct("<8sIIQ")
"""Magic, version, cluster, size of the disk."""
MAGIC: Final = b"XENPYCOW"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Cow:
    """The words.

    Attributes:
        overlay: the file, made if there is none; "": one without a name, which ends with
            the daemon.
    """

    overlay: str
    lower_readonly: bool = True

    @classmethod
    def parse(cls, words: Words) -> Cow:
        overlay = words.text("overlay")
        words.end()
        if overlay and not overlay.startswith("/"):
            raise ValueError(f"cow: overlay is {overlay!r}; give overlay=/an/absolute/one")
        return cls(overlay)

    def wrap(self, lower: Store, place: FilterPlace) -> Store:
        if not self.overlay:
            fd = os.open(tempfile.gettempdir(), os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        else:
            fd = os.open(self.overlay, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if self.overlay:
                _claim(fd, self.overlay, lower.size)
            return CowFilter(lower, fd, readonly=place.readonly, kept=bool(self.overlay))
        except BaseException:
            os.close(fd)
            raise


class CowFilter(Filter):
    """The store and the overlay, as one.

    Args:
        lower: the store.
        fd: of the overlay: empty, or one of `lower`'s size.  Closed with the filter.
        readonly: refuse `write`.
        kept: the overlay outlives the process, so that a flush has something to do.
    """

    def __init__(self, lower: Store, fd: int, *, readonly: bool, kept: bool) -> None:
        super().__init__(lower)
        self.readonly = readonly
        self.block_size = max(lower.block_size, CLUSTER)
        self.discard_granularity = self.discard_alignment = 0
        self.can_zero = False
        self.volatile = lower.volatile or not kept
        bits = -(-lower.size // CLUSTER)
        self._bitmap = bytearray(-(-bits // (8 * BLOCK)) * BLOCK)
        self._data = BLOCK + len(self._bitmap)
        end = self._data + bits * CLUSTER
        self._overlay = DescriptorStore(fd, end, readonly=False)
        self._fd = fd
        self._kept = kept
        self._durability = Durability()
        # Held by whoever gives the overlay a new cluster.
        self._growing = threading.Lock()
        self._unsaved: set[int] = set()
        self._half = memoryview(mmap.mmap(-1, CLUSTER))
        if os.fstat(fd).st_size:
            self._overlay.readinto(memoryview(self._bitmap), BLOCK)
        else:
            os.truncate(fd, end)
            header = HEADER.pack(MAGIC, VERSION, CLUSTER, lower.size).ljust(BLOCK, b"\0")
            self._overlay.write(memoryview(header), 0)

    def readv(self, buffers: Sequence[Buffer], offset: int) -> None:
        check_range(self, offset, total(buffers))
        rest = list(buffers)
        for start, end, ours in self._runs(offset, offset + total(buffers)):
            piece, rest = _split(rest, end - start)
            if ours:
                self._overlay.readv(piece, self._data + start)
            else:
                self.lower.readv(piece, start)

    def writev(self, buffers: Sequence[Buffer], offset: int) -> None:
        end = offset + total(buffers)
        check_write(self, offset, end - offset)
        if all(ours for _, _, ours in self._runs(offset, end)):
            self._overlay.writev(buffers, self._data + offset)
            return
        with self._growing:
            # Half a cluster is not enough: its other sectors come along.  Within the lock, or
            # they could undo what another queue writes there.
            for cluster in {offset // CLUSTER, (end - 1) // CLUSTER}:
                start = cluster * CLUSTER
                whole = offset <= start and min(start + CLUSTER, self.size) <= end
                if not whole and not self._holds(cluster):
                    with self._half[: min(CLUSTER, self.size - start)] as half:
                        self.lower.readinto(half, start)
                        self._overlay.write(half, self._data + start)
            self._overlay.writev(buffers, self._data + offset)
            for cluster in range(offset // CLUSTER, (end - 1) // CLUSTER + 1):
                self._bitmap[cluster // 8] |= 1 << cluster % 8
                self._unsaved.add(cluster // (8 * BLOCK))

    def measure(self) -> int:
        # The overlay is one of a disk of one size.
        return self.size

    def flush(self) -> None:
        if self._kept and not self.readonly:
            self._durability.flush(self._save)

    def discard(self, offset: int, length: int) -> None:
        # Not the lower store's, whose bytes others may use as well.
        check_write(self, offset, length)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def zero(self, offset: int, length: int) -> None:
        Store.zero(self, offset, length)

    def close(self) -> None:
        if self._fd < 0:
            return
        try:
            if self._unsaved:
                self.flush()
        finally:
            self._fd = -1
            self._half.release()
            self._overlay.close()
            self.lower.close()

    def _holds(self, cluster: int) -> bool:
        return bool(self._bitmap[cluster // 8] & 1 << cluster % 8)

    def _runs(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Cut a range where the overlay begins or ends: (start, end, whether it is there)."""
        while offset < end:
            start, cluster = offset, offset // CLUSTER
            ours = self._holds(cluster)
            while True:
                cluster += 1
                offset = min(cluster * CLUSTER, end)
                if offset == end or self._holds(cluster) != ours:
                    break
            yield start, offset, ours

    def _save(self) -> None:
        with self._growing:
            bits = memoryview(self._bitmap)
            blocks = {
                number: bytes(bits[number * BLOCK : (number + 1) * BLOCK])
                for number in sorted(self._unsaved)
            }
            self._unsaved.clear()
        os.fdatasync(self._fd)
        if blocks:
            for number, block in blocks.items():
                self._overlay.write(memoryview(block), BLOCK + number * BLOCK)
            os.fdatasync(self._fd)


def _claim(fd: int, path: str, size: int) -> None:
    """See that a kept overlay is ours alone, and fits."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DeviceError(f"the overlay {path} is in use by another disk") from error
    if os.fstat(fd).st_size == 0:
        # Its name must be there after a power failure, too.
        directory = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return
    header = os.pread(fd, HEADER.size, 0)
    if len(header) < HEADER.size or header[: len(MAGIC)] != MAGIC:
        raise DeviceError(f"{path} is no overlay of ours; name another, or remove it")
    _, version, cluster, of = HEADER.unpack(header)
    if (version, cluster) != (VERSION, CLUSTER):
        raise DeviceError(f"{path} is an overlay of version {version}, not {VERSION}")
    if of != size:
        raise DeviceError(f"{path} is the overlay of a disk of {of} bytes; this one has {size}")


def _split(buffers: Sequence[Buffer], count: int) -> tuple[list[Buffer], list[Buffer]]:
    """The first `count` bytes of a list of buffers, and the rest."""
    head: list[Buffer] = []
    for number, buffer in enumerate(buffers):
        if count < len(buffer):
            cut = [buffer[:count]] if count else []
            return head + cut, [buffer[count:], *buffers[number + 1 :]]
        head.append(buffer)
        count -= len(buffer)
    return head, []
