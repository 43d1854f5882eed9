# SPDX-License-Identifier: MIT
"""The suite of vchan between threads on a real Xen, domain 0 being its own peer."""

from __future__ import annotations

import pytest

from conformance.vchan_threads_suite import *  # noqa: F403 - the tests themselves
from conformance.vchan_threads_suite import ThreadArena, ThreadHalf
from conformance.xen_env import Loopback, nothing_left_in_the_hypervisor
from xenpy.drivers.vchan.channel import NativeVchan
from xenpy.types import DOM0

__all__ = ["nothing_left_in_the_hypervisor"]


@pytest.fixture
def arena() -> ThreadArena:
    half = ThreadHalf(DOM0, None, NativeVchan())
    return ThreadArena(half, half, Loopback().census)
