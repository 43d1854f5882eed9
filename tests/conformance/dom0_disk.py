# SPDX-License-Identifier: MIT
"""A disk of dom0's own stock xen-blkfront, served by `xenpy serve block` beside it."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from conformance.kernel_disk import until_disk
from xenpy.cli.main import main

__all__ = ["DISK", "attached", "until_size", "xenpy"]

DISK = Path("/dev/xvdz")


def xenpy(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `xenpy`; it may fail.  In this process: an interpreter takes seconds to start."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(words)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def until_size(sectors: int) -> None:
    """Until the kernel shows the disk with so many sectors; 0: or not at all."""
    until_disk(DISK.name, sectors)


@contextmanager
def attached(target: str, sectors: int, *words: str) -> Iterator[Path]:
    """`target` as /dev/xvdz, which has so many sectors; gone afterwards."""
    done = xenpy("attach", "block", "0", "vdev=xvdz", f"target={target}", *words)
    assert done.returncode == 0, done.stderr
    try:
        until_size(sectors)
        yield DISK
    finally:
        done = xenpy("detach", "block", "0", "vdev=xvdz")
        assert done.returncode == 0, done.stderr
        until_size(0)
