# SPDX-License-Identifier: MIT
"""FileStore over a block device: a loop device, which hands discards on to its file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenpy.drivers.block.stores.file import FileStore

SIZE = 4 << 20


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * SIZE)
    return path


@pytest.fixture
def loop(image: Path) -> Iterator[Path]:
    device = Path(run("losetup", "--find", "--show", str(image)))
    yield device
    run("losetup", "--detach", str(device))


@pytest.fixture
def store(loop: Path) -> Iterator[FileStore]:
    store = FileStore(os.open(loop, os.O_RDWR | os.O_CLOEXEC), readonly=False)
    yield store
    store.close()


def test_a_discard_reaches_what_is_below(store: FileStore, loop: Path, image: Path) -> None:
    queue = Path("/sys/class/block") / loop.name / "queue"
    assert store.discard_granularity == int((queue / "discard_granularity").read_text()) > 0
    before = image.stat().st_blocks
    store.discard(1 << 20, 1 << 20)
    store.discard(100, 200)
    content = image.read_bytes()
    assert content == b"x" * (1 << 20) + bytes(1 << 20) + b"x" * (2 << 20)
    assert image.stat().st_blocks < before
    buffer = bytearray(4096)
    store.readinto(memoryview(buffer), 1 << 20)
    assert buffer == bytes(4096)


def test_a_device_that_grows_has_another_size(store: FileStore, loop: Path, image: Path) -> None:
    os.truncate(image, 2 * SIZE)
    run("losetup", "--set-capacity", str(loop))
    assert (store.size, store.measure()) == (SIZE, 2 * SIZE)
