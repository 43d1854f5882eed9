# SPDX-License-Identifier: MIT
"""Waiting for a state of XenStore instead of for events: read, and again when it changes.

The idea is ocaml-xenstore's: a function reads what it needs and raises `NotYet`; whatever
it has read is watched.  No event can be lost between the reading and the watching, because
what was watched late is read once more.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from xenpy.errors import XenConnectionError, XenError, XenTimeoutError
from xenpy.store_nodes import Reader
from xenpy.store_transaction import Transaction
from xenpy.store_watch import Subscription, WatchRegistry

__all__ = ["MAX_WAIT_PATHS", "NotYet", "Waiting"]

T = TypeVar("T")

MAX_WAIT_PATHS: Final = 256
"""Paths that one `wait` watches at most."""


class NotYet(Exception):
    """Raised by a function given to `Store.wait`: run me again when something changes."""


class _Store(WatchRegistry, Protocol):
    async def transact(
        self, fn: Callable[[Transaction], Awaitable[T]], attempts: int = 16
    ) -> T: ...


class Waiting:
    """The state of one `Store.wait`: what is watched, and whether to look again."""

    def __init__(self, store: _Store) -> None:
        self._store = store
        self._wake = asyncio.Event()
        self._error: XenError | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._reason = ""

    async def run(self, fn: Callable[[Reader], Awaitable[T]], timeout: float | None) -> T:
        """See `Store.wait`."""
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await self._until_ready(fn)
        except TimeoutError:
            if not limit.expired():
                raise  # a request's own
            paths = sorted(self._subscriptions)
            raise XenTimeoutError(
                errno.ETIMEDOUT, "wait", self._reason, seconds=timeout, paths=paths
            ) from None
        finally:
            for subscription in self._subscriptions.values():
                await self._store.unsubscribe(subscription)

    async def _until_ready(self, fn: Callable[[Reader], Awaitable[T]]) -> T:
        asked: set[str] = set()

        async def attempt(tx: Transaction) -> T:
            try:
                return await fn(tx)
            finally:
                asked.update(tx.paths)

        while True:
            self._wake.clear()
            asked.clear()
            try:
                return await self._store.transact(attempt)
            except NotYet as reason:
                self._reason = str(reason)
            except XenConnectionError as error:
                # The next attempt waits for the connection.
                self._reason = str(error)
                continue
            except XenError as error:
                if error.errno != errno.EAGAIN:
                    raise
                self._reason = str(error)
            # What has been watched just now was read before: look again.
            if not await self._watch(asked):
                await self._wake.wait()
            if self._error is not None:
                raise self._error

    async def _watch(self, paths: set[str]) -> bool:
        """Watch these and no others.  Returns True if any was not watched before."""
        if len(paths) > MAX_WAIT_PATHS:
            hint = f"at most {MAX_WAIT_PATHS} paths"
            raise XenError(errno.E2BIG, "wait", hint, paths=len(paths))
        new = paths - self._subscriptions.keys()
        for path in self._subscriptions.keys() - paths:
            await self._store.unsubscribe(self._subscriptions.pop(path))
        for path in new:
            self._subscriptions[path] = await self._store.subscribe(path, self)
        return bool(new)

    def changed(self, path: str) -> None:
        self._wake.set()

    def failed(self, error: XenError) -> None:
        self._error = error
        self._wake.set()
