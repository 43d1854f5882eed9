# SPDX-License-Identifier: MIT
"""What filters have in common: each wraps a store, and is one."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from xenpy.drivers.block.store import Buffer, Durability, Store, check_range, check_write, total

__all__ = ["Around", "Filter", "FilterMaker", "FilterPlace", "Operation"]


class Operation(Enum):
    """What is asked of a store."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    DISCARD = "discard"
    ZERO = "zero"


@dataclass(frozen=True, slots=True)
class FilterPlace:
    """Where a filter works, and the store behind it.

    Attributes:
        device: the disk's name, KIND/DOMID/DEVID.
        readonly: nobody will write to the disk.
        log: the disk's own.
        python: the operator lets code of his own run in the daemon.
        store_path: of the XenStore that the disk is in; None: the default.
    """

    device: str
    readonly: bool
    log: logging.LoggerAdapter[logging.Logger]
    python: bool = False
    store_path: str | None = None


class FilterMaker(Protocol):
    """A filter's words, checked."""

    @property
    def lower_readonly(self) -> bool:
        """Whether what it wraps is only read."""
        ...

    def wrap(self, lower: Store, place: FilterPlace) -> Store:
        """Put the filter in front of a store, which it then owns.

        Raises:
            OSError: a file of the filter's cannot be used.  `lower` is left open.
            DeviceError: the filter and `lower` do not fit.  The same.
        """
        ...


class Filter(Store):
    """Hands everything on.  Owns `lower`, and closes it.

    `native` is None: what a filter does is done in Python.
    """

    parallel = True

    def __init__(self, lower: Store) -> None:
        self.lower = lower
        self.sector_size = lower.sector_size
        self.block_size = lower.block_size
        self.readonly = lower.readonly
        self.discard_granularity = lower.discard_granularity
        self.discard_alignment = lower.discard_alignment
        self.discard_erases = lower.discard_erases
        self.can_zero = lower.can_zero
        self.persistent = lower.persistent
        self.volatile = lower.volatile

    @property
    def size(self) -> int:
        """The store's own."""
        return self.lower.size

    @size.setter
    def size(self, value: int) -> None:
        self.lower.size = value

    def measure(self) -> int:
        return self.lower.measure()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.lower!r})"

    def readinto(self, buffer: Buffer, offset: int) -> None:
        self.readv([buffer], offset)

    def write(self, buffer: Buffer, offset: int) -> None:
        self.writev([buffer], offset)

    def readv(self, buffers: Sequence[Buffer], offset: int) -> None:
        self.lower.readv(buffers, offset)

    def writev(self, buffers: Sequence[Buffer], offset: int) -> None:
        self.lower.writev(buffers, offset)

    def flush(self) -> None:
        self.lower.flush()

    def discard(self, offset: int, length: int) -> None:
        self.lower.discard(offset, length)

    def zero(self, offset: int, length: int) -> None:
        self.lower.zero(offset, length)

    def close(self) -> None:
        self.lower.close()

    def stats(self) -> Mapping[str, int]:
        return self.lower.stats()


class Around(Filter):
    """A filter that does the same thing around each call, whatever the call does."""

    def __init__(self, lower: Store) -> None:
        super().__init__(lower)
        self._durability = Durability()

    @abstractmethod
    def around(
        self, operation: Operation, offset: int, length: int, call: Callable[[], None]
    ) -> None:
        """Run `call`, or raise OSError instead.  In several threads at once."""

    def readv(self, buffers: Sequence[Buffer], offset: int) -> None:
        length = total(buffers)
        check_range(self, offset, length)
        self.around(Operation.READ, offset, length, lambda: self.lower.readv(buffers, offset))

    def writev(self, buffers: Sequence[Buffer], offset: int) -> None:
        length = total(buffers)
        check_write(self, offset, length)
        self.around(Operation.WRITE, offset, length, lambda: self.lower.writev(buffers, offset))

    def flush(self) -> None:
        # A flush that the filter itself makes fail is as final as one of the store's.
        self._durability.flush(lambda: self.around(Operation.FLUSH, 0, 0, self.lower.flush))

    def discard(self, offset: int, length: int) -> None:
        check_write(self, offset, length)
        self.around(Operation.DISCARD, offset, length, lambda: self.lower.discard(offset, length))

    def zero(self, offset: int, length: int) -> None:
        check_write(self, offset, length)
        self.around(Operation.ZERO, offset, length, lambda: self.lower.zero(offset, length))
