# SPDX-License-Identifier: MIT
"""The suite of one's own protocols over the fakes, which look for what is left at the end."""

from __future__ import annotations

import pytest

from conformance.own_suite import *  # noqa: F403 - the tests themselves
from conformance.own_suite import Enter
from conformance.own_tap_suite import *  # noqa: F403 - the tests themselves
from xenpy.testing.ring import Pair, both
from xenpy.testing.world import fakes


@pytest.fixture
def pair() -> Pair:
    return both


@pytest.fixture
def enter() -> Enter:
    return fakes
