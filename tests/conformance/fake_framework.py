# SPDX-License-Identifier: MIT
"""A `FrameworkEnvironment` over the fake Xen and the fake xenstored."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest

from conformance.fake_env import FakeEnvironment
from conformance.store_thread import StoreThread
from xenpy.types import DomId

__all__ = ["FakeFramework", "env"]


class FakeFramework(FakeEnvironment):
    """With a XenStore in a thread of its own."""

    sibling_domid = DomId(3)

    def __init__(self, store: StoreThread) -> None:
        super().__init__()
        self._store = store
        for domid in (self.front_domid, self.stranger_domid):
            self._introduce(domid)

    def _introduce(self, domid: DomId) -> None:
        self._store.ask(lambda fake: fake.introduce(domid))

    def store_path(self) -> str | None:
        return self._store.path

    def sibling(self) -> FakeFramework:
        other = copy.copy(self)
        other.front_domid = self.sibling_domid
        self._introduce(other.front_domid)
        return other

    def kill_front_domain(self) -> bool:
        self._store.ask(lambda fake: fake.release_domain(self.front_domid))
        return True

    def close(self) -> None:
        assert set(self.xen.census().values()) == {0}
        self.xen.close()


@pytest.fixture(scope="module")
def env() -> Iterator[FakeFramework]:
    with StoreThread() as store:
        env = FakeFramework(store)
        yield env
        env.close()
