# SPDX-License-Identifier: MIT
"""A disk that remembers in which order its writes became durable: dm-log-writes, and its replay.

The target writes a log (Documentation/admin-guide/device-mapper/log-writes.rst): a write is
logged once it has completed *and* a later flush has; so that the log, up to any point, is what
a power cut at that point leaves on a disk whose cache loses all it may lose.
"""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conformance.stock_backends import a_loop, run

__all__ = ["Entry", "a_mapped_device", "dmsetup", "entries", "logged_disk"]

SECTOR = 512
MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")
PATIENCE = 60.0


@dataclass(frozen=True)
class Entry:
    """One entry: `content` at byte `offset`, or a discard of `length` bytes, or a mark."""

    offset: int
    length: int
    flags: int
    content: bytes

    @property
    def mark(self) -> str | None:
        return self.content.rstrip(b"\0").decode() if self.flags & MARK else None

    def apply(self, disk: bytearray) -> None:
        """Do to a disk what was done."""
        if self.flags & DISCARD:
            disk[self.offset : self.offset + self.length] = bytes(self.length)
        elif not self.flags & MARK:
            disk[self.offset : self.offset + len(self.content)] = self.content


def entries(log: Path) -> Iterator[Entry]:
    """What a log holds."""
    with log.open("rb") as file:
        magic, version, count, sector_size = _SUPER.unpack(file.read(_SUPER.size))
        assert (magic, version, sector_size) == (MAGIC, 1, SECTOR)
        place = SECTOR
        for _ in range(count):
            file.seek(place)
            sector, sectors, flags, length = _ENTRY.unpack(file.read(_ENTRY.size))
            inline = length if flags & MARK else sectors * SECTOR
            # A mark's text is beside its header, data follow in sectors of their own.
            start = place + (_ENTRY.size if flags & MARK else SECTOR)
            file.seek(start)
            content = b"" if flags & DISCARD else file.read(inline)
            yield Entry(sector * SECTOR, sectors * SECTOR, flags, content)
            place += SECTOR + (0 if flags & (DISCARD | MARK) else sectors * SECTOR)


def dmsetup(*words: str) -> None:
    """Run it.  dom0 has no udev: libdm makes the nodes itself."""
    run("env", "DM_DISABLE_UDEV=1", "dmsetup", *words)


@contextmanager
def a_mapped_device(name: str, table: str) -> Iterator[Path]:
    """A device-mapper device with one table."""
    dmsetup("create", name, "--table", table)
    try:
        yield Path("/dev/mapper", name)
    finally:
        remove(name)


def remove(name: str) -> None:
    """Whoever had it open closes it a moment after the disk is gone."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            dmsetup("remove", name)
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@contextmanager
def logged_disk(name: str, image: Path, log: Path) -> Iterator[Path]:
    """`image` as a disk whose writes go to `log` as well.  The log is whole once this ends."""
    run("modprobe", "dm-log-writes")
    sectors = image.stat().st_size // SECTOR
    with (
        a_loop(image) as data,
        a_loop(log) as record,
        a_mapped_device(name, f"0 {sectors} log-writes {data} {record}") as device,
    ):
        yield device
