# SPDX-License-Identifier: MIT
"""Where `xenpy tap` gets its records: from the daemon that serves a ring, from the ring, or from a
capture."""

from __future__ import annotations

import asyncio
import errno
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import IO, Self

from xenpy.capture import Capture, Head
from xenpy.cli.common import BUILT_IN, find_driver
from xenpy.cli.errors import UsageError
from xenpy.control import Answer
from xenpy.driver import Driver
from xenpy.errors import XenError
from xenpy.passive_tap import PassiveTap
from xenpy.trace import RECORD, TraceReader
from xenpy.xenstore import Store

__all__ = ["ExactSource", "FileSource", "PassiveSource", "Source"]

NANOSECONDS = 1e9


class Source(ABC):
    """An async context manager.

    Attributes:
        head: of the capture; once entered.
        over: set once nothing comes any more but what can be had at once.
    """

    head: Head
    over: asyncio.Event

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as held:
            await self._enter(held)
            self._held = held.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._held.aclose()

    @abstractmethod
    async def _enter(self, held: AsyncExitStack) -> None:
        """Begin; what has to be ended goes into `held`."""

    @abstractmethod
    async def look(self) -> Sequence[tuple[int, bytes | memoryview]]:
        """What has been seen since the last call: a ring, and its records as they are in memory,
        good until the next call.  Nothing if there is nothing now."""

    @property
    @abstractmethod
    def lost(self) -> int:
        """Requests of which too little was seen to show them."""


class ExactSource(Source):
    """What the engine records.

    Args:
        answer: of the daemon; closed with this.
    """

    def __init__(self, device: str, answer: Answer) -> None:
        start = time.monotonic_ns()
        self.head = Head(device, answer.driver, answer.layout, answer.rings, start)
        self.over = asyncio.Event()
        self._answer = answer
        self._readers: list[TraceReader] = []

    async def _enter(self, held: AsyncExitStack) -> None:
        held.enter_context(self._answer)
        loop = asyncio.get_running_loop()
        # The daemon says nothing more: it can only end.
        loop.add_reader(self._answer.fileno(), self.over.set)
        held.callback(loop.remove_reader, self._answer.fileno())
        self._readers = [held.enter_context(TraceReader(fd)) for fd in self._answer.fds]

    async def look(self) -> Sequence[tuple[int, bytes | memoryview]]:
        if all(reader.ended for reader in self._readers):
            self.over.set()
        found = [(ring, reader.read_raw()) for ring, reader in enumerate(self._readers)]
        return [(ring, records) for ring, records in found if records]

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

    async def _enter(self, held: AsyncExitStack) -> None:
        await held.enter_async_context(self._tap)
        peeked = self._tap.peeked
        self.head = Head(
            self._device, self._driver.name, peeked.name, len(peeked.refs), time.monotonic_ns(),
            exact=False, interval=self._interval,
        )  # fmt: skip

    async def look(self) -> Sequence[tuple[int, bytes | memoryview]]:
        return [(ring, RECORD.pack(*record)) for ring, record in await self._tap.look()]

    @property
    def lost(self) -> int:
        return self._tap.lost


class FileSource(Source):
    """What a capture has; it is over at once.

    Args:
        file: closed by the caller.

    Raises:
        ValueError: that is no capture; looking: it was cut off.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._capture = Capture(file)
        self._chunks = self._capture.chunks()
        self.head = self._capture.head
        self.over = asyncio.Event()

    async def _enter(self, held: AsyncExitStack) -> None:
        """The file is the caller's."""

    async def look(self) -> Sequence[tuple[int, bytes | memoryview]]:
        chunk = next(self._chunks, None)
        if chunk is None:
            self.over.set()
            return []
        return [chunk]

    @property
    def lost(self) -> int:
        tail = self._capture.tail
        return 0 if tail is None else tail.lost


def _driver_of(kind: str) -> Driver:
    for name in BUILT_IN:
        driver = find_driver(name)
        if kind in driver.kinds:
            return driver
    raise UsageError(f"no driver here knows what rings of {kind} carry")
