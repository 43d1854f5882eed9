# SPDX-License-Identifier: MIT
"""`xenpy tap` as a process of its own."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from conformance.daemon_process import PATIENCE, XENPY

__all__ = ["tapping"]


@contextmanager
def tapping(device: str, *words: str, by_itself: bool = False) -> Iterator[str]:
    """What it says first, from the moment at which it sees everything.

    Args:
        by_itself: it ends so; otherwise it is ended.
    """
    command = [*XENPY, "tap", device, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            yield said
        finally:
            if not by_itself:
                process.send_signal(signal.SIGINT)
            status = process.wait(PATIENCE)
            print(said, process.stderr.read())
        assert status == 0
