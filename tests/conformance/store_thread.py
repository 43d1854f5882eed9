# SPDX-License-Identifier: MIT
"""A fake xenstored in a thread of its own, for code that runs its own event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVar

from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.xenbus import parse_state
from xenpy.xenstore import Store

__all__ = ["PATIENCE", "StoreThread"]

T = TypeVar("T")

PATIENCE = 20.0


class StoreThread:
    """The daemon, and a backend that answers the states of one device if it is asked to.

    Attributes:
        path: the socket.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._backends: list[Future[None]] = []
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self._fake = self.call(FakeXenstored)
        self._on_loop(self._fake.__aenter__())
        self.path = self._fake.path
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._on_loop(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the daemon's thread."""

        async def run() -> T:
            return function()

        return self._on_loop(run())

    def ask(self, question: Callable[[FakeXenstored], T]) -> T:
        """Look into the daemon, or act as the toolstack does."""
        return self.call(lambda: question(self._fake))

    def start_backend(self, path: str, *, error: str = "", stuck: bool = False) -> Future[None]:
        """Answer the next device at `path` until it has closed.

        Args:
            error: refuse it, for this reason.
            stuck: never close.
        """
        body = self._serve(path, error, stuck)
        backend = asyncio.run_coroutine_threadsafe(body, self._loop)
        self._backends.append(backend)
        return backend

    def _on_loop(self, body: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(body, self._loop).result(PATIENCE)

    async def _end(self) -> None:
        # Nothing may be left to the garbage collector, which would warn in a later test:
        # neither a backend nor a connection that is being accepted or closed.
        for backend in self._backends:
            backend.cancel()
        await self._fake.__aexit__(None, None, None)
        while rest := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(rest)
        while self._fake.peers:
            self._fake.cut()
            await asyncio.sleep(0)
        # A transport that has been cut closes its socket in the next round.
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _serve(self, path: str, error: str, stuck: bool) -> None:
        state = f"{path}/state"
        async with Store.open(self._fake.path) as store, store.watch(state) as watch:
            async for _ in watch:
                match parse_state(await store.get(state)).name:
                    case "INITIALISING":
                        status = "error" if error else "connected"
                        await store.write(f"{path}/hotplug-error", error)
                        await store.write(f"{path}/hotplug-status", status)
                        await store.write(state, 2)
                    case "CLOSING" if not stuck:
                        await store.write(state, 6)
                        return
