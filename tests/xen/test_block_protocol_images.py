# SPDX-License-Identifier: MIT
"""Image safety against the kernel itself: loop devices and mounts, on block devices and files.

Runs in dom0 because it makes loop devices and mounts; the rest of image safety is in
tests/drivers.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenpy.backend import DeviceError
from xenpy.drivers.block.image_lock import open_image_file


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 16 << 20)
    run("mkfs.ext4", "-q", "-F", str(path))
    return path


@pytest.fixture
def loop(image: Path) -> Iterator[str]:
    device = run("losetup", "--find", "--show", str(image))
    yield device
    run("losetup", "--detach", device)


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def test_a_file_under_a_loop_device_is_refused(image: Path, loop: str) -> None:
    for readonly in (False, True):
        with pytest.raises(DeviceError, match=f"in use by {loop}"):
            open_image_file(str(image), readonly=readonly, force=False)
    os.close(open_image_file(str(image), readonly=False, force=True))


def test_a_file_under_a_read_only_loop_device_may_be_read(image: Path) -> None:
    device = run("losetup", "--find", "--show", "--read-only", str(image))
    try:
        os.close(open_image_file(str(image), readonly=True, force=False))
        with pytest.raises(DeviceError, match=f"in use by {device}"):
            open_image_file(str(image), readonly=False, force=False)
    finally:
        run("losetup", "--detach", device)
    os.close(open_image_file(str(image), readonly=False, force=False))


def test_a_mounted_block_device_is_refused(loop: str, mountpoint: Path) -> None:
    run("mount", loop, str(mountpoint))
    try:
        for readonly in (False, True):
            with pytest.raises(DeviceError, match=f"a mount on {mountpoint}, writable"):
                open_image_file(loop, readonly=readonly, force=False)
    finally:
        run("umount", str(mountpoint))
    os.close(open_image_file(loop, readonly=False, force=False))


def test_a_block_device_that_is_mounted_read_only_may_be_read(loop: str, mountpoint: Path) -> None:
    run("mount", "-o", "ro", loop, str(mountpoint))
    try:
        os.close(open_image_file(loop, readonly=True, force=False))
        with pytest.raises(DeviceError, match=f"a mount on {mountpoint}, read-only"):
            open_image_file(loop, readonly=False, force=False)
    finally:
        run("umount", str(mountpoint))


def test_a_block_device_that_we_serve_cannot_be_mounted(loop: str, mountpoint: Path) -> None:
    fd = open_image_file(loop, readonly=False, force=False)
    try:
        refused = subprocess.run(["mount", loop, str(mountpoint)], capture_output=True, check=False)
        assert refused.returncode != 0
        with pytest.raises(DeviceError, match="another disk of this daemon"):
            open_image_file(loop, readonly=False, force=False)
        with pytest.raises(DeviceError, match="in use"):
            open_image_file(loop, readonly=True, force=False)
    finally:
        os.close(fd)


def test_readers_share_a_block_device(loop: str) -> None:
    first = open_image_file(loop, readonly=True, force=False)
    second = open_image_file(loop, readonly=True, force=False)
    with pytest.raises(DeviceError, match="in use"):
        open_image_file(loop, readonly=False, force=False)
    os.close(first)
    os.close(second)
