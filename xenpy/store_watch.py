# SPDX-License-Identifier: MIT
"""What became of a watch: changed paths, coalesced, in bounded memory.

A guest can write its keys at any rate; a backend that queued each event would give it all
of its memory (XSA-349).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Protocol

from xenpy.errors import XenError

__all__ = ["MAX_PATHS", "Subscriber", "Subscription", "Watch", "WatchRegistry"]

MAX_PATHS: Final = 256
"""Changed paths that a watch remembers; more, and it says only that its root changed."""


class Subscriber(Protocol):
    """Who wants to know.  Neither method may block or raise."""

    def changed(self, path: str) -> None:
        """Something at or below `path` may have changed."""

    def failed(self, error: XenError) -> None:
        """There will be no more events."""


class Subscription:
    """One watch that xenstored is to hold for us, over any number of connections."""

    __slots__ = ("armed_on", "path", "subscriber", "token")

    def __init__(self, path: str, token: str, subscriber: Subscriber) -> None:
        self.path = path
        self.token = token
        self.subscriber = subscriber
        self.armed_on: object = None
        """The connection on which it was asked for."""


class WatchRegistry(Protocol):
    """What a `Watch` needs of the `Store`."""

    async def subscribe(self, path: str, subscriber: Subscriber) -> Subscription: ...
    async def unsubscribe(self, subscription: Subscription) -> None: ...


class Watch:
    """A watch while it is entered: iterate over sets of changed paths.

    The first set comes at once and names `path` itself, as does one after a reconnect and
    one that stands for too many changes to remember: read again whatever is below.
    """

    def __init__(self, registry: WatchRegistry, path: str) -> None:
        self.path = path
        self._registry = registry
        self._subscription: Subscription | None = None
        self._paths: set[str] = set()
        self._overflowed = False
        self._error: XenError | None = None
        self._wake = asyncio.Event()

    async def __aenter__(self) -> Watch:
        self._subscription = await self._registry.subscribe(self.path, self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._registry.unsubscribe(subscription)

    def __aiter__(self) -> AsyncIterator[frozenset[str]]:
        return self

    async def __anext__(self) -> frozenset[str]:
        """Wait for changes; return every path that changed since the last call.

        Raises:
            XenError: xenstored refused to watch again after a reconnect, or the store
                was closed.
        """
        while not self._paths:
            if self._error is not None:
                raise self._error
            self._wake.clear()
            await self._wake.wait()
        paths = frozenset(self._paths)
        self._paths.clear()
        self._overflowed = False
        return paths

    def changed(self, path: str) -> None:
        if not self._overflowed:
            if len(self._paths) >= MAX_PATHS and path not in self._paths:
                self._paths.clear()
                self._overflowed = True
                path = self.path
            self._paths.add(path)
        self._wake.set()

    def failed(self, error: XenError) -> None:
        self._error = error
        self._wake.set()
