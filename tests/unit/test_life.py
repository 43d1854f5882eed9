# SPDX-License-Identifier: MIT
"""Daemons that come and go, over the fake Xen and the fake xenstored."""

from __future__ import annotations

from conformance.fake_framework import env
from conformance.life_suite import *  # noqa: F403 - the tests themselves

__all__ = ["env"]
