# SPDX-License-Identifier: MIT
"""The failures of the harness itself, and the exit statuses that stand for them.

`xenvm exec` exits with the status of the command it ran, so a failure of the harness
must not look like one: it always prints a line that starts with `xenvm: error:` on
standard error, and exits with `HARNESS`.  A command may of course exit with that
number too; then the line is missing.
"""

from __future__ import annotations

__all__ = [
    "HARNESS",
    "INTERRUPTED",
    "USAGE",
    "BootTimeoutError",
    "UsageError",
    "VmDiedError",
    "VmError",
]

USAGE = 2
"""The command line was wrong (argparse's own number)."""

HARNESS = 125
"""xenvm failed, not the command it was asked to run (as `env`, `timeout` and git-bisect use it)."""

INTERRUPTED = 130
"""Ctrl-C: 128 + SIGINT."""


class VmError(Exception):
    """The harness cannot go on.

    Attributes:
        hint: what the reader can do about it, or "".
        details: lines to show before the message, such as the end of the console.
    """

    def __init__(self, message: str, *, hint: str = "", details: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.details = details

    def render(self) -> str:
        """The error as the user sees it, one fact per line."""
        lines: list[str] = []
        if self.details:
            lines += [f"  | {line}" for line in self.details.splitlines()]
        lines.append(f"xenvm: error: {self}")
        if self.hint:
            lines.append(f"xenvm: hint: {self.hint}")
        return "\n".join(lines)


class UsageError(VmError):
    """The command line asks for something that cannot be; exit status `USAGE`."""


class VmDiedError(VmError):
    """QEMU, Xen or dom0 is gone, or has stopped answering."""


class BootTimeoutError(VmDiedError):
    """Dom0 did not come up in time; nothing says why."""
