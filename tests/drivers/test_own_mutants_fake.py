# SPDX-License-Identifier: MIT
"""Mistakes in a driver of one's own are noticed over the fakes."""

from __future__ import annotations

import pytest

from conformance.own_mutants import *  # noqa: F403 - the tests themselves

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def level() -> str:
    return "fake"
