# SPDX-License-Identifier: MIT
"""The console suite over the fakes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import pytest

from conformance.console_suite import *  # noqa: F403 - the tests themselves
from conformance.console_suite import Place
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DOM0, DomId
from xenpy.xenstore import Store


class FakePlace:
    """Domain 1 is the guest."""

    domid = DomId(1)

    def __init__(self) -> None:
        self.xen = FakeXen()
        self.back = self.xen.domain(DOM0)
        self.front = self.xen.domain(self.domid)

    @asynccontextmanager
    async def store(self) -> AsyncGenerator[Store]:
        async with FakeXenstored() as fake, Store.open(fake.path) as store:
            fake.introduce(self.domid)
            yield store


@pytest.fixture
def place() -> Iterator[Place]:
    place = FakePlace()
    yield place
    assert not any(place.xen.census().values()), place.xen.census()
    place.xen.close()
