# SPDX-License-Identifier: MIT
"""The frontend's suite over the fake Xen and the fake xenstored: seconds, no root."""

from __future__ import annotations

from conformance.block_front_suite import *  # noqa: F403 - the tests themselves
from conformance.fake_framework import env

__all__ = ["env"]
