# SPDX-License-Identifier: MIT
"""What all queues of a disk share, in whatever process and tier each of them runs."""

from __future__ import annotations

import os

from xenpy.drivers.block._engine import lib
from xenpy.drivers.block.xentop import XentopFile
from xenpy.memory import LocalMemory

__all__ = ["DiskMemory"]


class DiskMemory:
    """A `struct block_disk`: in it all queues of a disk remember that a flush has failed, and
    count what xentop shows.

    Args:
        file: where xentop finds the figures; closed with this, or if this cannot be made.  None:
            it does not.

    Attributes:
        fd: of the memory.
    """

    def __init__(self, file: XentopFile | None = None) -> None:
        self._file = file
        if file is None:
            self.fd, self._memory = LocalMemory.shareable("xenpy-block", self.size())
        else:
            self.fd = file.fd
            try:
                self._memory = LocalMemory.from_fd(self.fd, self.size())
            except BaseException:
                file.close()
                raise
        lib.block_disk_start(self._memory.address)

    @staticmethod
    def size() -> int:
        """Bytes that `file` must have."""
        return lib.block_disk_size()

    @property
    def is_shown(self) -> bool:
        """Whether xentop finds it."""
        return self._file is not None

    @property
    def has_lost(self) -> bool:
        """Whether a flush has failed."""
        return bool(lib.block_disk_has_lost(self.address))

    @property
    def address(self) -> int:
        return self._memory.address

    def add(self, rd_req: int, rd_sect: int, wr_req: int, wr_sect: int, errors: int) -> None:
        """Count for xentop what a batch in Python has done.  In several threads at once."""
        lib.block_disk_add(self.address, rd_req, rd_sect, wr_req, wr_sect, errors)

    def close(self) -> None:
        """Harmless when closed."""
        if self._memory.closed:
            return
        self._memory.close()
        if self._file is None:
            os.close(self.fd)
        else:
            self._file.close()
        self.fd = -1
