# SPDX-License-Identifier: MIT
"""The cells of `xenvm bench streams`: bytes between dom0 and a guest, by every way there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from xenpy.vm.bench.table import Cell

__all__ = ["CELLS", "CONSOLE_BYTES", "COUNTS", "FEWER", "RING", "WIDE"]

RING: Final = 64 << 10
"""Bytes of a ring, unless the job is `wide`."""
WIDE: Final = 1 << 20
COUNTS: Final[Mapping[str, int]] = {"stream": 32 << 20, "ping": 2000}
"""Bytes from the guest to dom0, and round trips of a byte."""
FEWER: Final[Mapping[str, int]] = {"stream": 256 << 10, "ping": 200}
"""The same through XenStore."""
CONSOLE_BYTES: Final = 512 << 10
"""What the guest prints."""


def _race(
    job: str, ours: str, rival: str, gate: float | None, goal: float | None, unit: str
) -> Cell:
    return Cell(f"{job}/{ours}/{rival}", ours, gate, goal, job=job, rival=rival, unit=unit)


CELLS: Sequence[Cell] = (
    _race("stream", "blocking", "libxenvchan", 0.85, 1.0, "bytes/s"),
    _race("stream", "blocking", "netback", 3, 5, "bytes/s"),
    _race("stream", "asyncio", "libxenvchan", None, 0.5, "bytes/s"),
    _race("stream", "bytes", "netback", None, None, "bytes/s"),
    _race("stream", "requests", "netback", None, None, "bytes/s"),
    _race("stream", "xenstore", "netback", None, None, "bytes/s"),
    _race("wide-stream", "blocking", "libxenvchan", None, 0.85, "bytes/s"),
    _race("wide-stream", "blocking", "netback", None, 5, "bytes/s"),
    _race("wide-stream", "asyncio", "libxenvchan", None, 0.5, "bytes/s"),
    _race("ping", "blocking", "libxenvchan", 0.4, 0.7, "round trips/s"),
    _race("ping", "asyncio", "libxenvchan", None, 0.4, "round trips/s"),
    _race("ping", "blocking", "netback", None, 1, "round trips/s"),
    _race("ping", "bytes", "netback", None, None, "round trips/s"),
    _race("ping", "requests", "netback", None, None, "round trips/s"),
    _race("ping", "xenstore", "netback", None, None, "round trips/s"),
    _race("console", "xenpy", "xenconsoled", 1, 3, "bytes/s"),
)
