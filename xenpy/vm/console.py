# SPDX-License-Identifier: MIT
"""Reading the console log: what it says about a death, and its last lines.

Results of commands never come from here; a panic does, because nothing else reports it.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["find_panic", "last_lines"]

_PANICS = (
    # xen/drivers/char/console.c, panic()
    (re.compile(r"^\(XEN\).*Panic on CPU \d+:"), "Xen panicked"),
    # xen/common/domain.c and shutdown.c: dom0 ran into a wall before it could say so
    (re.compile(r"^\(XEN\).*Hardware Dom0 (?:crashed|halted)"), "dom0 stopped"),
    (re.compile(r"^\(XEN\).*Domain 0 \(vcpu#\d+\) crashed"), "dom0 crashed"),
    # kernel/panic.c
    (re.compile(r"Kernel panic - not syncing"), "dom0's kernel panicked"),
    (re.compile(r"^xenvm: setup of dom0 failed"), "dom0's set-up failed"),
    (re.compile(r"^xenvm: no root device"), "dom0 found no root disk"),
)

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def clean(text: str) -> str:
    """Console text without escape sequences, so that it cannot play with a terminal."""
    return _ESCAPES.sub("", text.replace("\r", ""))


def find_panic(text: str) -> str:
    """What died, and the line that says so; "" if nothing did."""
    for line in clean(text).splitlines():
        for pattern, meaning in _PANICS:
            if pattern.search(line):
                return f"{meaning}: {line.strip()[:200]}"
    return ""


def last_lines(path: Path, count: int = 20) -> str:
    """The end of a log."""
    return "\n".join(clean(read_tail(path)).splitlines()[-count:])


def read_tail(path: Path, limit: int = 64 * 1024) -> str:
    """At most `limit` bytes of the end of `path`; "" if there is no such file."""
    try:
        with path.open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - limit))
            return handle.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
