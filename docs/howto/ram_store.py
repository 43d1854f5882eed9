# SPDX-License-Identifier: MIT
"""A store in 20 lines: bytes in memory.  See write-a-store.md."""

from xenpy.drivers.block.store import Buffer, Store
from xenpy.words import parse_size


class RamStore(Store):
    volatile = True  # no other daemon can take this disk over

    def __init__(self, size: str = "16M") -> None:
        self.size = parse_size(size)
        self.bytes = bytearray(self.size)

    def readinto(self, buffer: Buffer, offset: int) -> None:
        buffer[:] = memoryview(self.bytes)[offset : offset + len(buffer)]

    def write(self, buffer: Buffer, offset: int) -> None:
        memoryview(self.bytes)[offset : offset + len(buffer)] = buffer

    def flush(self) -> None:
        """Nothing to do: nothing outlives the daemon."""

    def close(self) -> None:
        self.bytes = bytearray()
