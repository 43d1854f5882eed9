# SPDX-License-Identifier: MIT
"""`xenpy proxy` as a process of its own, for a disk of dom0's own stock xen-blkfront."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.daemon_process import PATIENCE, XENPY
from conformance.dom0_disk import until_size

__all__ = ["proxying"]


@contextmanager
def proxying(target: str, sectors: int, directory: Path, *words: str) -> Iterator[str]:
    """`target` as /dev/xvdz, which has so many sectors; gone afterwards.  Yields its name."""
    log = directory / "proxy.log"
    command = [
        *XENPY, "proxy", "block", "0", "vdev=xvdz", f"target={target}", "--rundir", str(directory),
        *words,
    ]  # fmt: skip
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            name = process.stdout.readline().strip()
            assert name, log.read_text()
            until_size(sectors)
            yield name
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait(PATIENCE)
            print(log.read_text()[-4000:])
        assert status == 0
        until_size(0)
