# SPDX-License-Identifier: MIT
"""XenStore for programs without an event loop: one in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TypeVar

from xenpy.xenstore import Store

__all__ = ["ControlThread"]

T = TypeVar("T")


class ControlThread:
    """Runs coroutines for other threads, until it is closed.

    Args:
        name: the thread's.
        path: where to open the store, as `Store.open` takes it.

    Raises:
        XenError: as `Store.open`; there is no thread then.

    Attributes:
        store: for the coroutines.
    """

    def __init__(self, name: str, path: str | None) -> None:
        self.store: Store
        self._path = path
        self._ready: Future[asyncio.AbstractEventLoop] = Future()
        self._stop = asyncio.Event()
        # A daemon: a program that forgets to close it ends all the same.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        try:
            self._loop = self._ready.result()
        except BaseException:
            self._thread.join()
            raise

    def call(self, work: Coroutine[object, object, T]) -> T:
        """Run it there, and wait here for what it returns or raises."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C, here; there it goes on until it is told.
            future.cancel()
            raise

    def start(self, work: Coroutine[object, object, None]) -> Callable[[], object]:
        """Let it run there.  Returns what ends it; at the latest `close` does."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).cancel

    def close(self) -> None:
        """End what runs there, and the thread.  Harmless when closed."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _main(self) -> None:
        async with Store.open(self._path) as store:
            self.store = store
            self._ready.set_result(asyncio.get_running_loop())
            await self._stop.wait()
