# SPDX-License-Identifier: MIT
"""What the command line complains about, and the status it ends with then."""

from __future__ import annotations

from typing import Final

__all__ = ["EXIT_FAILED", "EXIT_NO_XEN", "EXIT_USAGE", "DriverError", "UsageError"]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NO_XEN: Final = 77


class UsageError(Exception):
    """The command line asks for what there is not."""


class DriverError(Exception):
    """A driver is installed, and cannot be used."""
