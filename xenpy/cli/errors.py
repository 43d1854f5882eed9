# SPDX-License-Identifier: MIT
"""What the command line complains about."""

from __future__ import annotations

__all__ = ["DriverError", "UsageError"]


class UsageError(Exception):
    """The command line asks for what there is not."""


class DriverError(Exception):
    """A driver is installed, and cannot be used."""
