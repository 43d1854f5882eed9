# SPDX-License-Identifier: MIT
"""The XenStore suite over the fake xenstored, in both of its flavours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from conformance.store_suite import *  # noqa: F403 - the tests themselves
from conformance.store_suite import Session, session_on
from xenpy.testing.fake_xenstored import FakeXenstored, Flavour


class FakeEnvironment:
    def __init__(self, flavour: Flavour) -> None:
        self._flavour: Flavour = flavour

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        async with FakeXenstored(self._flavour) as fake:
            async with session_on(fake.path) as session:
                yield session
            assert not fake.watches
            assert 21 not in {request.op for request in fake.requests}, "RESET_WATCHES"


@pytest.fixture(params=["c", "oxenstored"])
def xenstored(request: pytest.FixtureRequest) -> FakeEnvironment:
    return FakeEnvironment(request.param)
