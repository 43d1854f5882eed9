# SPDX-License-Identifier: MIT
"""Mistakes in a driver of one's own are noticed on a real Xen, by the same tests."""

from __future__ import annotations

import pytest

from conformance.own_mutants import *  # noqa: F403 - the tests themselves
from conformance.xen_env import nothing_left_in_the_hypervisor

__all__ = ["nothing_left_in_the_hypervisor"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def level() -> str:
    return "xen"
