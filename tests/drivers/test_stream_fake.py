# SPDX-License-Identifier: MIT
"""The suite of protocols of bytes over the fakes, which look for what is left at the end."""

from __future__ import annotations

import pytest

from conformance.stream_suite import *  # noqa: F403 - the tests themselves
from xenpy.testing.stream import Streams, both


@pytest.fixture
def streams() -> Streams:
    return both
