# SPDX-License-Identifier: MIT
"""FileStore: whole reads and writes or an error, and a lost write is never forgotten."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenpy.drivers.block.store import FileStore


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 64)
    return path


@pytest.fixture
def store(image: Path) -> Iterator[FileStore]:
    store = FileStore(os.open(image, os.O_RDWR | os.O_CLOEXEC), readonly=False)
    yield store
    store.close()


def test_the_size_is_the_file_s(store: FileStore) -> None:
    assert store.size == 16384


def test_a_vectored_read_fills_every_buffer(store: FileStore) -> None:
    buffer = bytearray(1024)
    view = memoryview(buffer)
    store.readv([view[0:100], view[100:101], view[101:]], 512)
    assert buffer == (bytes(range(256)) * 64)[512:1536]


def test_a_vectored_write_goes_where_it_says(store: FileStore, image: Path) -> None:
    store.writev([memoryview(b"a" * 512), memoryview(b"b" * 512)], 1024)
    content = image.read_bytes()
    assert content[1024:2048] == b"a" * 512 + b"b" * 512
    assert content[:1024] == bytes(range(256)) * 4
    assert len(content) == 16384


def test_short_counts_are_carried_on(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv

    def one_piece(fd: int, buffers: list[memoryview], offset: int) -> int:
        return whole(fd, [buffers[0][:700]], offset)

    monkeypatch.setattr(os, "preadv", one_piece)
    buffer = bytearray(4096)
    store.readv([memoryview(buffer)[:2048], memoryview(buffer)[2048:]], 0)
    assert buffer == bytes(range(256)) * 16


def test_short_writes_are_carried_on(
    store: FileStore, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwritev

    def one_piece(fd: int, buffers: list[memoryview], offset: int) -> int:
        return whole(fd, [buffers[0][:700]], offset)

    monkeypatch.setattr(os, "pwritev", one_piece)
    store.writev([memoryview(b"x" * 2048), memoryview(b"y" * 2048)], 0)
    assert image.read_bytes()[:4096] == b"x" * 2048 + b"y" * 2048


def test_more_buffers_than_the_kernel_takes(store: FileStore) -> None:
    buffer = bytearray(3000)
    view = memoryview(buffer)
    store.readv([view[at : at + 1] for at in range(3000)], 10)
    assert buffer == (bytes(range(256)) * 64)[10:3010]


def test_a_file_cut_off_under_us_is_an_error_not_zeros(store: FileStore, image: Path) -> None:
    os.truncate(image, 600)
    with pytest.raises(OSError, match="the image ends before byte 600"):
        store.readinto(memoryview(bytearray(1024)), 0)


def test_a_failed_flush_is_never_forgotten(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: int) -> None:
        raise OSError(errno.EIO, "lost")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lost)
        with pytest.raises(OSError, match="lost"):
            store.flush()
    with pytest.raises(OSError, match="an earlier flush failed"):
        store.flush()


def test_a_flush_syncs(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    store.flush()
    assert len(synced) == 1


def test_a_read_only_store_refuses_to_write(image: Path) -> None:
    store = FileStore(os.open(image, os.O_RDWR | os.O_CLOEXEC), readonly=True)
    with pytest.raises(OSError, match="Read-only") as caught:
        store.write(memoryview(b"x" * 512), 0)
    assert caught.value.errno == errno.EROFS
    store.close()
    store.close()


def test_only_files_and_block_devices_are_disks() -> None:
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="neither a regular file nor"):
        FileStore(reader, readonly=True)
    os.close(reader)
    os.close(writer)
