# SPDX-License-Identifier: MIT
"""How much of the processors a process takes, with those that it has started: a daemon of ours
serves each ring in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Load", "load_of"]

TICKS: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGESIZE")
DEPTH: Final = 4
"""Of children of children: ours have one."""
UTIME, STIME, RSS = 11, 12, 21
"""Fields of /proc/PID/stat behind the name, as proc(5) counts them less 3."""


@dataclass(frozen=True)
class Load:
    """So far.

    Attributes:
        seconds: of processor time, of those that live.
        resident: bytes of memory; what several share counts for each.
    """

    seconds: float
    resident: int


def load_of(pid: int, proc: Path = Path("/proc")) -> Load | None:
    """None if there is no such process any more."""
    found = [load for each in _family(pid, proc, DEPTH) if (load := _one(each, proc))]
    if not found:
        return None
    return Load(sum(one.seconds for one in found), sum(one.resident for one in found))


def _family(pid: int, proc: Path, depth: int) -> Iterator[int]:
    yield pid
    if not depth:
        return
    for word in _children(pid, proc):
        yield from _family(int(word), proc, depth - 1)


def _children(pid: int, proc: Path) -> list[str]:
    """It may end at any moment."""
    found: list[str] = []
    with suppress(OSError):
        for task in os.listdir(proc / f"{pid}/task"):
            with suppress(OSError):
                found += (proc / f"{pid}/task/{task}/children").read_text().split()
    return found


def _one(pid: int, proc: Path) -> Load | None:
    try:
        text = (proc / f"{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The name may hold anything, spaces and parentheses too.
    fields = text[text.rindex(")") + 2 :].split()
    return Load(
        (int(fields[UTIME]) + int(fields[STIME])) / TICKS,
        int(fields[RSS]) * PAGE,
    )
