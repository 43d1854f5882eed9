# SPDX-License-Identifier: MIT
"""A byte in shared memory that both sides change: flags, and whether a side lives.

Beside the rings of `xenpy.ring`, where a protocol keeps such bytes apart from its indices.
"""

from __future__ import annotations

from xenpy._ffi.stable import lib
from xenpy.memory import Memory

__all__ = ["SharedByte"]


class SharedByte:
    """A byte that both sides change, such as vchan's `cli_live` and `cli_notify`.

    Args:
        memory, offset: where it is.

    Every call raises StaleHandleError when the memory is closed.
    """

    def __init__(self, memory: Memory, offset: int) -> None:
        if not 0 <= offset < memory.size:
            raise ValueError(f"a byte at {offset} of {memory.size}")
        self._memory = memory
        self._where = memory.pointer(offset)

    def get(self) -> int:
        """What it is now; what is read after it is at least as new."""
        self._memory.pointer()
        return int(lib.xenpy_load_acquire8(self._where))

    def put(self, value: int) -> None:
        """Set it, once all that was written before can be seen."""
        self._memory.pointer()
        lib.xenpy_store_release8(self._where, value)

    def add(self, bits: int) -> None:
        """Set these bits, and leave the others alone; a full fence."""
        self._memory.pointer()
        lib.xenpy_fetch_or8(self._where, bits)
        # C keeps later loads behind the load of the call before, not behind its store.
        lib.xenpy_fence()

    def take(self, bits: int) -> int:
        """Clear these bits, and leave the others alone; a full fence.  Returns those of them
        that were set."""
        self._memory.pointer()
        return int(lib.xenpy_fetch_and8(self._where, ~bits & 0xFF)) & bits
