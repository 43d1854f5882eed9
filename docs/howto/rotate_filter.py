# SPDX-License-Identifier: MIT
"""A filter for a disk: each byte is kept with its bits rotated, and read as it was written.

$ xenpy proxy block 7 vdev=xvdc target=xvdb --filter python,class=/srv/rotate_filter.py:Rotate
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from xenpy.drivers.block.filters.base import Filter
from xenpy.drivers.block.store import Buffer, Store, total


class Rotate(Filter):
    """Zeros stay zeros, so that what was never written reads as such."""

    def __init__(self, lower: Store, bits: str = "1") -> None:
        super().__init__(lower)
        left = int(bits) % 8
        self._there = bytes((byte << left | byte >> (8 - left)) & 255 for byte in range(256))
        self._back = bytes(self._there.index(byte) for byte in range(256))

    def writev(self, buffers: Sequence[Buffer], offset: int) -> None:
        if length := total(buffers):
            # The buffers may be the guest's own pages: what is changed is a copy.
            kept = memoryview(mmap.mmap(-1, length))
            kept[:] = b"".join(buffers).translate(self._there)
            self.lower.writev([kept], offset)

    def readv(self, buffers: Sequence[Buffer], offset: int) -> None:
        self.lower.readv(buffers, offset)
        for buffer in buffers:
            buffer[:] = bytes(buffer).translate(self._back)
