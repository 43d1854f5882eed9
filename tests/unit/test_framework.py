# SPDX-License-Identifier: MIT
"""The framework's suites over the fake Xen and the fake xenstored."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterator

import pytest

from conformance.fake_env import FakeEnvironment
from conformance.framework_suite import *  # noqa: F403 - the tests themselves
from conformance.life_suite import *  # noqa: F403
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DomId


class FakeFramework(FakeEnvironment):
    """With a XenStore in a thread of its own."""

    sibling_domid = DomId(3)

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="xenstored")
        self._thread.start()
        self._store = self._run(self._start())

    async def _start(self) -> FakeXenstored:
        fake = FakeXenstored()
        await fake.__aenter__()
        for domid in (self.front_domid, self.sibling_domid, self.stranger_domid):
            fake.introduce(domid)
        return fake

    def _run(self, coroutine):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def store_path(self) -> str | None:
        return str(self._store.path)

    def sibling(self) -> FakeFramework:
        other = copy.copy(self)
        other.front_domid = self.sibling_domid
        return other

    def kill_front_domain(self) -> bool:
        async def kill() -> None:
            self._store.release_domain(self.front_domid)

        self._run(kill())
        return True

    def close(self) -> None:
        self._run(self._store.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        assert set(self.xen.census().values()) == {0}
        self.xen.close()


@pytest.fixture
def env() -> Iterator[FakeFramework]:
    env = FakeFramework()
    yield env
    env.close()
