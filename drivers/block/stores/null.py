# SPDX-License-Identifier: MIT
"""`null:1G`: reads are nothing, writes vanish.  To measure everything but the store.

In C no data moves at all, as with the kernel's null_blk: a guest reads what its page held.
"""

from __future__ import annotations

from xenpy.drivers.block.store import (
    SECTOR,
    ZEROS,
    Buffer,
    NativeKind,
    NativeStore,
    Store,
    check_range,
    check_write,
)

__all__ = ["NullStore"]


class NullStore(Store):
    """No bytes at all.

    Args:
        size: in bytes.
        readonly: whether `write` is refused.
    """

    discard_granularity = SECTOR
    can_zero = True
    persistent = False
    parallel = True

    def __init__(self, size: int, *, readonly: bool = False) -> None:
        self.size = size
        self.readonly = readonly

    def __repr__(self) -> str:
        return f"NullStore({self.size}, readonly={self.readonly})"

    @property
    def native(self) -> NativeStore:
        return NativeStore(NativeKind.NULL, -1, self.size, self.readonly)

    def readinto(self, buffer: Buffer, offset: int) -> None:
        check_range(self, offset, len(buffer))
        for place in range(0, len(buffer), len(ZEROS)):
            with buffer[place : place + len(ZEROS)] as piece:
                piece[:] = ZEROS[: len(piece)]

    def write(self, buffer: Buffer, offset: int) -> None:
        check_write(self, offset, len(buffer))

    def flush(self) -> None:
        """Nothing is kept."""

    def discard(self, offset: int, length: int) -> None:
        check_write(self, offset, length)

    def zero(self, offset: int, length: int) -> None:
        check_write(self, offset, length)

    def close(self) -> None:
        """Nothing is held."""
