# SPDX-License-Identifier: MIT
"""Waits for the kernel to show a disk, or to show it no more."""

from __future__ import annotations

import time
from pathlib import Path

from conformance.daemon_process import PATIENCE

__all__ = ["until_disk"]


def until_disk(name: str, sectors: int) -> None:
    """Until it is there with so many sectors, and with all that belongs to it; 0: or not at all.

    The size is there before the rest is (device_add_disk of Linux), and what is read while the
    disk goes away fails in the middle of it.
    """
    shown, node = Path("/sys/class/block") / name, Path("/dev") / name
    parts = (node, shown / "queue/logical_block_size")

    def is_so() -> bool:
        if not sectors:
            return not any(part.exists() for part in (shown, *parts))
        try:
            size = int((shown / "size").read_text())
        except OSError:
            return False
        return size == sectors and all(part.exists() for part in parts)

    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, f"/dev/{name} has not {sectors} sectors"
        time.sleep(0.05)
