# SPDX-License-Identifier: MIT
"""Targets and filters over a real Xen: both halves in dom0, real grants, qemu-nbd beside them."""

from __future__ import annotations

import pytest

from conformance.block_front import BlockEnvironment
from conformance.block_target_suite import *  # noqa: F403 - the tests themselves
from conformance.xen_env import Loopback, nothing_left_in_the_hypervisor

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]


@pytest.fixture
def env() -> BlockEnvironment:
    return Loopback()
