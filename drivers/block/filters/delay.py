# SPDX-License-Identifier: MIT
"""`delay,read=MS,write=MS,flush=MS`: a slower disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from xenpy.drivers.block.filters.base import Around, FilterPlace, Operation
from xenpy.drivers.block.store import Store
from xenpy.words import Words

__all__ = ["Delay", "DelayFilter"]

LIMIT: Final = 60_000.0
"""Milliseconds: a disconnect waits for what sleeps."""


@dataclass(frozen=True, slots=True)
class Delay:
    """The words.

    Attributes:
        read, write, flush: milliseconds before each; discard and zero are writes.
    """

    read: float
    write: float
    flush: float
    lower_readonly: bool = False

    @classmethod
    def parse(cls, words: Words) -> Delay:
        read, write, flush = (
            words.number(key, 0.0, low=0.0, high=LIMIT) for key in ("read", "write", "flush")
        )
        words.end()
        return cls(read, write, flush)

    def wrap(self, lower: Store, place: FilterPlace) -> Store:
        return DelayFilter(lower, self)


class DelayFilter(Around):
    """Sleeps before each call."""

    def __init__(self, lower: Store, delay: Delay) -> None:
        super().__init__(lower)
        self._seconds: Mapping[Operation, float] = {
            Operation.READ: delay.read / 1000,
            Operation.FLUSH: delay.flush / 1000,
        }
        self._write = delay.write / 1000

    def around(
        self, operation: Operation, offset: int, length: int, call: Callable[[], None]
    ) -> None:
        if seconds := self._seconds.get(operation, self._write):
            time.sleep(seconds)
        call()
