# SPDX-License-Identifier: MIT
"""The suite of protocols of bytes on a real Xen, domain 0 being its own guest."""

from __future__ import annotations

import pytest

from conformance.stream_suite import *  # noqa: F403 - the tests themselves
from conformance.xen_env import nothing_left_in_the_hypervisor
from xenpy.testing.stream import Streams, loopback

__all__ = ["nothing_left_in_the_hypervisor"]


@pytest.fixture
def streams() -> Streams:
    return loopback
