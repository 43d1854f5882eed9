# SPDX-License-Identifier: MIT
"""A disk over the fakes, for what the command line does with one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator
from contextlib import suppress

import pytest

from conformance.block_front import PATIENCE, Daemon, eventually
from conformance.block_front_suite import Access
from conformance.fake_framework import FakeFramework
from conformance.model_backend import OFFERS, ModelBackend
from xenpy.xenstore import Store

__all__ = ["SIZE", "Served", "offers", "served"]

SIZE = 4096 * 512


class Served:
    """A disk that is served to one frontend after the other, in a thread of its own."""

    def __init__(self, env: FakeFramework, offers: dict[str, str]) -> None:
        self._daemon = Daemon()
        self._over = False
        self._store = self._daemon.run(self._open(env))
        self.backend = ModelBackend(env, self._store, offers=offers)
        self._daemon.run(self.backend.make())
        self._task = self._daemon.run(self._begin())

    async def _open(self, env: FakeFramework) -> Store:
        return await Store.open(env.store_path(), timeout=PATIENCE).__aenter__()

    async def _begin(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        while not self._over:
            # An error of the rings, when a frontend has been taken away, may even stand in for
            # the task's being cancelled.
            with suppress(OSError):
                await self.backend.connect()
                async with self.backend.serving():
                    await self.backend.until("5", "6")
                await self.backend.follow_close()
                await self.backend.say(state=2)

    async def _end(self) -> None:
        self._over = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.backend.close()
        await self._store.close()

    def run(self, work: Coroutine[object, object, None]) -> None:
        """In its thread, beside what it serves."""
        self._daemon.run(work)

    def close(self) -> None:
        self._daemon.run(self._end())
        self._daemon.close()


@pytest.fixture
def offers() -> dict[str, str]:
    return dict(OFFERS)


@pytest.fixture
def served(
    env: FakeFramework, offers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    before = env.census()
    monkeypatch.setattr("xenpy.drivers.block.front.NativeFrontend", lambda: Access(env))
    served = Served(env, offers)
    served.backend.disk[:] = random.Random(1).randbytes(SIZE)
    yield served
    served.close()
    eventually(lambda: env.census() == before)
