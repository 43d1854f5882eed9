# SPDX-License-Identifier: MIT
"""The suites of vchan over the fakes, and what only they can show."""

from __future__ import annotations

import pytest

from conformance.vchan_arena import Arenas, fake_arena
from conformance.vchan_suite import *  # noqa: F403 - the tests themselves


@pytest.fixture
def arenas() -> Arenas:
    return fake_arena
