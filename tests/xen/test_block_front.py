# SPDX-License-Identifier: MIT
"""The frontend's suite over a real Xen: both halves in dom0, dom0's own xenstored."""

from __future__ import annotations

import pytest

from conformance.block_front_suite import *  # noqa: F403 - the tests themselves
from conformance.xen_env import nothing_left_in_the_hypervisor
from conformance.xen_framework import XenFramework
from xenpy.types import DomId

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]


@pytest.fixture
def env() -> XenFramework:
    return XenFramework(DomId(32000))
