# SPDX-License-Identifier: MIT
"""The tap's suite over the fake Xen and the fake xenstored."""

from __future__ import annotations

from conformance.fake_framework import env
from conformance.tap_suite import *  # noqa: F403 - the tests themselves

__all__ = ["env"]
