# SPDX-License-Identifier: MIT
"""Daemons that come and go, over a real Xen and dom0's own xenstored."""

from __future__ import annotations

import pytest

from conformance.life_suite import *  # noqa: F403 - the tests themselves
from conformance.xen_env import nothing_left_in_the_hypervisor
from conformance.xen_framework import env, stranger

pytestmark = pytest.mark.slow

__all__ = ["env", "nothing_left_in_the_hypervisor", "stranger"]
