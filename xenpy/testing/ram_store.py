# SPDX-License-Identifier: MIT
"""A disk in Python, to be measured: bytes in memory, and nothing that a store need not do."""

from __future__ import annotations

from xenpy.drivers.block.store import Buffer, Store
from xenpy.words import parse_size

__all__ = ["RamStore"]


class RamStore(Store):
    """Of `size`, as `parse_size` takes it."""

    volatile = True

    def __init__(self, size: str) -> None:
        self.size = parse_size(size)
        self.view = memoryview(bytearray(self.size))

    def readinto(self, buffer: Buffer, offset: int) -> None:
        buffer[:] = self.view[offset : offset + len(buffer)]

    def write(self, buffer: Buffer, offset: int) -> None:
        self.view[offset : offset + len(buffer)] = buffer

    def flush(self) -> None:
        """Nothing outlives the daemon."""

    def close(self) -> None:
        self.view.release()
