# SPDX-License-Identifier: MIT
"""The file in which xentop looks for a disk's figures: whose it is, what is left of it."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from xenpy.drivers.block.disk_memory import DiskMemory
from xenpy.drivers.block.native import EngineState
from xenpy.drivers.block.xentop import MARK, XentopFile
from xenpy.types import DevId, DomId

DOMID, DEVID = DomId(7), DevId(51712)
VBD3_STATS = struct.Struct("<II11Q")
"""Xen's struct vbd3_stats."""


def make(root: Path, devid: int = DEVID) -> XentopFile:
    return XentopFile(DOMID, DevId(devid), DiskMemory.size(), root=root)


def test_a_batch_is_in_the_file(tmp_path: Path) -> None:
    memory = DiskMemory(make(tmp_path))
    path = tmp_path / f"td3-{os.getpid()}/vbd-7-51712"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks > 0
    memory.add(3, 24, 2, 9, 1)
    memory.add(1, 8, 0, 0, 0)
    figures = VBD3_STATS.unpack(path.read_bytes()[: VBD3_STATS.size])
    assert figures == (1, 0, 0, 4, 4, 32, 0, 2, 2, 9, 0, 1, 0)
    assert memory.is_shown
    memory.close()
    memory.close()
    assert list(tmp_path.iterdir()) == []


def test_queues_count_at_the_same_time(tmp_path: Path) -> None:
    memory = DiskMemory(make(tmp_path))

    def count() -> None:
        for _ in range(10_000):
            memory.add(1, 0, 0, 0, 0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = tmp_path.glob("td3-*/vbd-*")
    assert VBD3_STATS.unpack(path.read_bytes()[: VBD3_STATS.size])[3] == 40_000
    memory.close()


def test_the_directory_goes_with_the_last_disk(tmp_path: Path) -> None:
    one, other = make(tmp_path), make(tmp_path, 51728)
    one.close()
    assert other.path.exists()
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_made_again_begins_at_zero(tmp_path: Path) -> None:
    """The device before it is still closing; its file is the old one, of which nobody knows."""
    old, new = DiskMemory(make(tmp_path)), DiskMemory(make(tmp_path))
    old.add(1, 8, 0, 0, 0)
    (path,) = tmp_path.glob("td3-*/vbd-*")
    assert VBD3_STATS.unpack(path.read_bytes()[: VBD3_STATS.size])[3] == 0
    old.close()
    assert path.exists()
    new.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_daemon_left_is_removed_and_nobody_else_s(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f"td3-{dead.pid}"
    tapdisk = tmp_path / f"td3-{dead.pid + 1}"
    living = tmp_path / f"td3-{os.getppid()}"
    odd = tmp_path / "td3-1x"
    for directory in (left, tapdisk, living, odd):
        directory.mkdir()
        (directory / "vbd-1-51712").touch()
        if directory is not tapdisk:
            (directory / MARK).touch()
    file = make(tmp_path)
    assert not left.exists()
    for directory in (tapdisk, living, odd):
        assert (directory / "vbd-1-51712").exists()
    file.close()


@pytest.mark.parametrize("kind", ["link", "file", "another user's"])
def test_somebody_else_s_directory_is_not_used(tmp_path: Path, kind: str) -> None:
    """Anybody may make directories in /dev/shm."""
    place = tmp_path / f"td3-{os.getpid()}"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        place.touch()
    else:
        place.mkdir()
    uid = os.geteuid() + (kind == "another user's")
    with patch("os.geteuid", return_value=uid), pytest.raises(OSError, match="somebody else's"):
        make(tmp_path)


def test_a_full_file_system_is_an_error_and_no_sigbus(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    with patch("os.posix_fallocate", side_effect=full), pytest.raises(OSError, match="No space"):
        make(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "attempt",
    [lambda _: DiskMemory(), lambda root: DiskMemory(make(root)), lambda _: EngineState(8)],
    ids=["of the disk", "of the disk, in a file", "of an engine"],
)
def test_memory_that_cannot_be_mapped_keeps_nothing(
    attempt: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frontend that comes again and again would take a descriptor each time."""

    def refuse(*_: object, **__: object) -> mmap.mmap:
        raise OSError(errno.EMFILE, "too many open files")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(OSError, match="too many open files"):
        attempt(tmp_path)
    assert os.listdir("/proc/self/fd") == before
    assert list(tmp_path.iterdir()) == []
