# SPDX-License-Identifier: MIT
"""`memory:64M`: a disk that lives as long as the daemon, in memory that is taken when written."""

from __future__ import annotations

import fcntl
import os

from xenpy.drivers.block.discard import punch_hole
from xenpy.drivers.block.store import NativeKind, NativeStore, check_write
from xenpy.drivers.block.stores.file import PAGE_CACHE_BLOCK, DescriptorStore

__all__ = ["MemoryStore"]


class MemoryStore(DescriptorStore):
    """A memfd, so that an engine in C can map it.  Sealed: it can never shrink under a
    mapping.

    Args:
        size: in bytes.
        readonly: whether `write` is refused.
    """

    can_zero = True
    discard_granularity = PAGE_CACHE_BLOCK
    discard_erases = True
    volatile = True

    def __init__(self, size: int, *, readonly: bool = False) -> None:
        fd = os.memfd_create("xenpy-disk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(fd, size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            os.close(fd)
            raise
        super().__init__(fd, size, readonly=readonly)

    @property
    def native(self) -> NativeStore:
        return NativeStore(NativeKind.MEMORY, self._fd, self.size, self.readonly)

    def discard(self, offset: int, length: int) -> None:
        self.zero(offset, length)

    def zero(self, offset: int, length: int) -> None:
        check_write(self, offset, length)
        if length:
            punch_hole(self._fd, offset, length)
