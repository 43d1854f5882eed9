# SPDX-License-Identifier: MIT
"""Where `xenpy tap` gets its records: from the daemon that serves a ring, or from the ring."""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from xenpy.capture import Head
from xenpy.cli.common import BUILT_IN, find_driver
from xenpy.cli.errors import UsageError
from xenpy.control import Answer
from xenpy.driver import Driver
from xenpy.errors import XenError
from xenpy.passive_tap import PassiveTap
from xenpy.trace import TraceReader, TraceRecord
from xenpy.xenstore import Store

__all__ = ["ExactSource", "PassiveSource", "Source"]

NANOSECONDS = 1e9


class Source(ABC):
    """An async context manager.

    Attributes:
        head: of the capture; once entered.
        over: set once nothing comes any more but what can be had at once.
    """

    head: Head
    over: asyncio.Event

    @abstractmethod
    async def look(self) -> list[tuple[int, TraceRecord]]:
        """What has been seen since the last call; [] if there is nothing now."""

    @property
    @abstractmethod
    def lost(self) -> int:
        """Requests of which too little was seen to show them."""

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class ExactSource(Source):
    """What the engine records.

    Args:
        answer: of the daemon; closed with this.
    """

    def __init__(self, device: str, answer: Answer) -> None:
        self.head = Head(device, answer.driver, answer.layout, answer.rings)
        self.over = asyncio.Event()
        self._answer = answer
        self._held = ExitStack()
        self._readers: list[TraceReader] = []

    async def __aenter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(self._answer)
            loop = asyncio.get_running_loop()
            # The daemon says nothing more: it can only end.
            loop.add_reader(self._answer.fileno(), self.over.set)
            held.callback(loop.remove_reader, self._answer.fileno())
            self._readers = [held.enter_context(TraceReader(fd)) for fd in self._answer.fds]
            self._held = held.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.close()

    async def look(self) -> list[tuple[int, TraceRecord]]:
        if all(reader.ended for reader in self._readers):
            self.over.set()
        return [
            (ring, record) for ring, reader in enumerate(self._readers) for record in reader.read()
        ]

    @property
    def lost(self) -> int:
        return sum(reader.lost for reader in self._readers)


class PassiveSource(Source):
    """What is in the ring when somebody looks.

    Args:
        interval: seconds between two looks.

    Raises:
        XenError: entering: EOPNOTSUPP, no driver knows the kind; and as `PassiveTap`.
    """

    def __init__(self, device: str, store: Store, interval: float) -> None:
        kind = device.partition("/")[0]
        self._driver = _driver_of(kind)
        if self._driver.peek is None:
            raise XenError(errno.EOPNOTSUPP, "tap", "its rings cannot be read so", device=device)
        self._device = device
        self._interval = interval
        peek = self._driver.peek
        self._tap = PassiveTap(store, device, peek, int(interval * NANOSECONDS))
        self.over = self._tap.over

    async def __aenter__(self) -> Self:
        await self._tap.__aenter__()
        peeked = self._tap.peeked
        self.head = Head(
            self._device, self._driver.name, peeked.name, len(peeked.refs), exact=False,
            interval=self._interval,
        )  # fmt: skip
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._tap.__aexit__(kind, error, traceback)

    async def look(self) -> list[tuple[int, TraceRecord]]:
        return await self._tap.look()

    @property
    def lost(self) -> int:
        return self._tap.lost


def _driver_of(kind: str) -> Driver:
    for name in BUILT_IN:
        driver = find_driver(name)
        if kind in driver.kinds:
            return driver
    raise UsageError(f"no driver here knows what rings of {kind} carry")
