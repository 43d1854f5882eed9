# SPDX-License-Identifier: MIT
"""Real guests on disks of `xenpy serve block`, made by xl."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, DaemonProcess
from xenpy.vm import disk

__all__ = [
    "FILE_SYSTEM",
    "MIB",
    "daemon",
    "domains",
    "guest",
    "image",
    "inside",
    "make_image",
    "until_unserved",
]

MIB = 1 << 20

FILE_SYSTEM = """
mkfs.ext4 -q -F /dev/xvda
mkdir -p /mnt
mount -t ext4 /dev/xvda /mnt
dd if=/dev/urandom of=/mnt/file bs=1M count=8 conv=fsync 2>/dev/null
sha256sum < /mnt/file
umount /mnt
"""
"""Makes one, and prints the digest of a file in it."""


def make_image(path: Path, mib: int) -> Path:
    """An empty image."""
    with path.open("wb") as file:
        file.truncate(mib * MIB)
    return path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    """The daemon; alive when the test is over."""
    with DaemonProcess(tmp_path) as daemon:
        yield daemon
        assert daemon.process.poll() is None, daemon.said()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """64 MiB of nothing."""
    return make_image(tmp_path / "disk.img", 64)


@contextmanager
def guest(name: str, image: Path, *options: str) -> Iterator[str]:
    """A guest whose xvda is `image`; gone afterwards."""
    disk.create(name, image, *options)
    try:
        yield name
    finally:
        subprocess.run(["xl", "destroy", name], check=False, stderr=subprocess.DEVNULL)


def inside(name: str, script: str) -> str:
    """What `script` prints in the guest; it must succeed."""
    return disk.run("xenvm-guest", "exec", name, "--", f"set -e\n{script}")


def until_unserved(daemon: DaemonProcess) -> None:
    """Until the daemon has no device."""
    deadline = time.monotonic() + PATIENCE
    while daemon.devices():
        assert time.monotonic() < deadline, daemon.said()
        time.sleep(0.1)


def domains() -> list[str]:
    """The names that xl lists; a zombie's is (null)."""
    return [row.split()[0] for row in disk.run("xl", "list").splitlines()[1:]]
