# SPDX-License-Identifier: MIT
"""`readonly`: the guest gets a read-only disk, and the image is opened for reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xenpy.drivers.block.filters.base import Filter, FilterPlace
from xenpy.drivers.block.store import Buffer, NativeStore, Store, check_write, total
from xenpy.words import Words

__all__ = ["Readonly", "ReadonlyFilter"]


@dataclass(frozen=True, slots=True)
class Readonly:
    """The words: none."""

    lower_readonly: bool = True

    @classmethod
    def parse(cls, words: Words) -> Readonly:
        words.end()
        return cls()

    def wrap(self, lower: Store, place: FilterPlace) -> Store:
        return ReadonlyFilter(lower)


class ReadonlyFilter(Filter):
    """Refuses every change with EROFS."""

    def __init__(self, lower: Store) -> None:
        super().__init__(lower)
        self.readonly = True
        self.discard_granularity = self.discard_alignment = 0
        self.can_zero = False

    @property
    def native(self) -> NativeStore | None:
        native = self.lower.native
        return None if native is None else replace(native, readonly=True)

    def writev(self, buffers: Sequence[Buffer], offset: int) -> None:
        check_write(self, offset, total(buffers))

    def discard(self, offset: int, length: int) -> None:
        check_write(self, offset, length)

    def zero(self, offset: int, length: int) -> None:
        check_write(self, offset, length)
