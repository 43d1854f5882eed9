# SPDX-License-Identifier: MIT
"""Keeps the contract for a store that somebody wrote for his own use."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from xenpy.drivers.block.store import (
    Buffer,
    Durability,
    Store,
    check_buffers,
    check_range,
    check_write,
    total,
)

__all__ = ["Guarded"]


class Guarded(Store):
    """A store that sees good places only, one call at a time unless it is `parallel`, and
    no flush after one that failed.

    Args:
        inner: the store; closed with this one.
        readonly: refuse `write` whatever the store would do.
    """

    parallel = True

    def __init__(self, inner: Store, *, readonly: bool) -> None:
        self.size = inner.size
        self.sector_size = inner.sector_size
        self.block_size = inner.block_size
        self.readonly = readonly or inner.readonly
        self.discard_granularity = inner.discard_granularity
        self.discard_alignment = inner.discard_alignment
        self.discard_erases = inner.discard_erases
        self.can_zero = inner.can_zero
        self.persistent = inner.persistent
        self.volatile = inner.volatile
        self._inner = inner
        self._turn: AbstractContextManager[object] = (
            nullcontext() if inner.parallel else threading.Lock()
        )
        self._durability = Durability()
        self._closed = False

    def __repr__(self) -> str:
        return f"Guarded({self._inner!r})"

    def measure(self) -> int:
        return self._inner.measure()

    def readinto(self, buffer: Buffer, offset: int) -> None:
        check_range(self, offset, len(buffer))
        with self._turn:
            self._inner.readinto(buffer, offset)

    def readv(self, buffers: Sequence[Buffer], offset: int) -> None:
        check_buffers(self, buffers, offset)
        with self._turn:
            self._inner.readv(buffers, offset)

    def write(self, buffer: Buffer, offset: int) -> None:
        check_write(self, offset, len(buffer))
        with self._turn:
            self._inner.write(buffer, offset)

    def writev(self, buffers: Sequence[Buffer], offset: int) -> None:
        check_write(self, offset, total(buffers))
        with self._turn:
            self._inner.writev(buffers, offset)

    def discard(self, offset: int, length: int) -> None:
        check_write(self, offset, length)
        with self._turn:
            self._inner.discard(offset, length)

    def zero(self, offset: int, length: int) -> None:
        check_write(self, offset, length)
        with self._turn:
            self._inner.zero(offset, length)

    def flush(self) -> None:
        # The lost flush first, then the turn: a flush that is refused need not wait.
        self._durability.flush(self._flush)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._inner.close()

    def stats(self) -> Mapping[str, int]:
        return self._inner.stats()

    def _flush(self) -> None:
        with self._turn:
            self._inner.flush()
