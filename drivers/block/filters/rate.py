# SPDX-License-Identifier: MIT
"""`rate,bps=SIZE,iops=N`: no more than so many bytes and calls a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from xenpy.drivers.block.filters.base import Around, FilterPlace, Operation
from xenpy.drivers.block.store import Store
from xenpy.words import Words

__all__ = ["Bucket", "Rate", "RateFilter"]

LOWEST_BPS: Final = 1 << 16
"""Below this, one request of a guest could sleep for a minute, and a disconnect with it."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The words.

    Attributes:
        bps: bytes a second, read and written together; 0: any number.
        iops: calls a second; 0: any number.
    """

    bps: int
    iops: float
    lower_readonly: bool = False

    @classmethod
    def parse(cls, words: Words) -> Rate:
        bps, iops = words.size("bps", 0, 1), words.number("iops", 0.0, low=1.0, high=1e9)
        words.end()
        if not bps and not iops:
            raise ValueError("rate limits nothing; give bps=10M, iops=500 or both")
        if 0 < bps < LOWEST_BPS:
            raise ValueError(f"rate: bps is {bps}; give {LOWEST_BPS} or more")
        return cls(bps, iops)

    def wrap(self, lower: Store, place: FilterPlace) -> Store:
        return RateFilter(lower, self)


class Bucket:
    """Tokens that flow in at a rate, of which a tenth of a second's may gather.

    Whoever takes more than there is waits until the debt is paid, in the order of coming.
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._paid_until = clock()

    def take(self, count: float) -> float:
        """Take tokens.  Returns the seconds to wait for them."""
        now = self._clock()
        # The time at which the bucket would have been empty, had it been full before.
        self._paid_until = max(self._paid_until, now - 0.1)
        self._paid_until += count / self._rate
        return max(self._paid_until - now, 0.0)


class RateFilter(Around):
    """Sleeps as long as the buckets say.  The queues of a disk share them."""

    def __init__(self, lower: Store, rate: Rate) -> None:
        super().__init__(lower)
        self._bytes = Bucket(rate.bps, time.monotonic) if rate.bps else None
        self._calls = Bucket(rate.iops, time.monotonic) if rate.iops else None
        self._turn = threading.Lock()

    def around(
        self, operation: Operation, offset: int, length: int, call: Callable[[], None]
    ) -> None:
        moved = length if operation in (Operation.READ, Operation.WRITE) else 0
        with self._turn:
            pause = max(
                self._bytes.take(moved) if self._bytes else 0.0,
                self._calls.take(1) if self._calls else 0.0,
            )
        if pause > 0.0:
            time.sleep(pause)
        call()
