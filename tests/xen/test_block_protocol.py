# SPDX-License-Identifier: MIT
"""The block suite over a real Xen: both halves in dom0, real grants, a real event channel."""

from __future__ import annotations

import pytest

from conformance.block_discard_suite import *  # noqa: F403 - the tests themselves
from conformance.block_front import BlockEnvironment
from conformance.block_history_suite import *  # noqa: F403
from conformance.block_indirect_suite import *  # noqa: F403
from conformance.block_queues_suite import *  # noqa: F403
from conformance.block_resize_suite import *  # noqa: F403
from conformance.block_sectors_suite import *  # noqa: F403
from conformance.block_suite import *  # noqa: F403 - the tests themselves
from conformance.xen_env import Loopback, nothing_left_in_the_hypervisor
from xenpy.vm.disk import xen_version

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]

NEWEST = (4, 20)
TIERS = ("worker", "callback", "batch") if xen_version() >= NEWEST else ("worker",)
"""On an older Xen the tier that guests get by default, which uses all that a release may do
differently, with handles of its own.  What the others have beyond it is the same code on any."""


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    """Here a worker can open handles of its own as well."""
    return str(request.param)


@pytest.fixture
def env() -> BlockEnvironment:
    return Loopback()
