# SPDX-License-Identifier: MIT
"""The block suite over the fake Xen: seconds, no root."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conformance.block_discard_suite import *  # noqa: F403 - the tests themselves
from conformance.block_front import BlockEnvironment
from conformance.block_history_suite import *  # noqa: F403
from conformance.block_indirect_suite import *  # noqa: F403
from conformance.block_queues_suite import *  # noqa: F403
from conformance.block_resize_suite import *  # noqa: F403
from conformance.block_sectors_suite import *  # noqa: F403
from conformance.block_suite import *  # noqa: F403 - the tests themselves
from conformance.fake_env import FakeEnvironment


@pytest.fixture
def env() -> Iterator[BlockEnvironment]:
    env = FakeEnvironment()
    yield env
    assert set(env.xen.census().values()) == {0}
    env.xen.close()
