# SPDX-License-Identifier: MIT
"""`stats`: calls, bytes and a histogram of latencies, among the disk's counters."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from xenpy.drivers.block.filters.base import Around, FilterPlace, Operation
from xenpy.drivers.block.store import Store
from xenpy.words import Words

__all__ = ["Stats", "StatsFilter"]

SLOWEST: Final = 24
"""The last class of the histogram begins at 2^23 microseconds, about 8 s."""


@dataclass(frozen=True, slots=True)
class Stats:
    """The words.

    Attributes:
        name: what the counters' names begin with, to tell two of these filters apart.
    """

    name: str
    lower_readonly: bool = False

    @classmethod
    def parse(cls, words: Words) -> Stats:
        name = words.text("name", "stats")
        words.end()
        if not (name.isascii() and name.isidentifier()):
            raise ValueError(f"stats: name is {name!r}; give letters, digits and _")
        return cls(name)

    def wrap(self, lower: Store, place: FilterPlace) -> Store:
        return StatsFilter(lower, self.name)


class StatsFilter(Around):
    """Counts, as `NAME_read_calls`, `_errors`, `_bytes` and `_us_below_64`.

    The histogram's classes are powers of two, each without those below: `us_below_64` are
    the calls that took 32 to 63 microseconds.
    """

    def __init__(self, lower: Store, name: str) -> None:
        super().__init__(lower)
        self._name = name
        self._turn = threading.Lock()
        self._counts: Counter[str] = Counter()

    def around(
        self, operation: Operation, offset: int, length: int, call: Callable[[], None]
    ) -> None:
        prefix = f"{self._name}_{operation.value}"
        done = False
        begun = time.monotonic()
        try:
            call()
            done = True
        finally:
            took = int((time.monotonic() - begun) * 1e6)
            with self._turn:
                counts = self._counts
                counts[f"{prefix}_calls"] += 1
                counts[f"{prefix}_us_below_{1 << min(took.bit_length(), SLOWEST)}"] += 1
                if not done:
                    counts[f"{prefix}_errors"] += 1
                elif length:
                    counts[f"{prefix}_bytes"] += length

    def stats(self) -> Mapping[str, int]:
        with self._turn:
            return {**super().stats(), **self._counts}
