# SPDX-License-Identifier: MIT
"""FileStore: whole reads and writes or an error, O_DIRECT where it fits; and what remembers a lost
write.  What every store promises is in test_block_store_contract.py."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from xenpy.drivers.block import discard
from xenpy.drivers.block.store import Durability, Store
from xenpy.drivers.block.stores.file import FileStore


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


def test_the_size_is_looked_at_again(store: FileStore, image: Path) -> None:
    os.truncate(image, 20000)
    assert (store.measure(), store.size) == (20000, 16384)


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


def test_a_flush_does_not_begin_while_another_may_fail(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two queues flush at once, and the kernel tells only the first of the lost write."""
    first_in, second_in = Event(), Event()

    def sync(_: int) -> None:
        if first_in.is_set():
            second_in.set()
            return
        first_in.set()
        second_in.wait(0.2)
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "fdatasync", sync)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(store.flush)
        assert first_in.wait(30)
        other = pool.submit(store.flush)
        with pytest.raises(OSError, match="lost"):
            one.result(30)
        with pytest.raises(OSError, match="an earlier flush failed"):
            other.result(30)


def test_a_flush_syncs(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    store.flush()
    assert len(synced) == 1


def test_a_discard_gives_the_blocks_back(store: FileStore, image: Path) -> None:
    assert (store.discard_granularity, store.discard_alignment) == (4096, 0)
    content = image.read_bytes()
    os.fsync(store._fd)  # pyright: ignore[reportPrivateUsage]
    before = image.stat().st_blocks
    store.discard(4096, 8192)
    assert image.read_bytes() == content[:4096] + bytes(8192) + content[12288:]
    assert image.stat().st_blocks < before
    # Less than a block: nothing to give back, and only these bytes are lost.
    store.discard(12800, 512)
    assert (
        image.read_bytes()
        == content[:4096] + bytes(8192) + content[12288:12800] + bytes(512) + content[13312:]
    )


def test_a_discard_does_not_make_a_short_file_long(store: FileStore, image: Path) -> None:
    os.truncate(image, 4096)
    store.discard(0, 16384)
    assert image.read_bytes() == bytes(4096)


def test_a_file_system_that_cannot_punch(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(discard, "punch_hole", cannot)
    store = FileStore(os.open(image, os.O_RDWR | os.O_CLOEXEC), readonly=False)
    assert store.discard_granularity == 0
    store.close()


def test_a_store_without_discard_says_so() -> None:
    class Fixed(Store):
        size = 512

        def readinto(self, buffer: memoryview, offset: int) -> None: ...
        def write(self, buffer: memoryview, offset: int) -> None: ...
        def flush(self) -> None: ...
        def close(self) -> None: ...

    assert Fixed().discard_granularity == 0
    with pytest.raises(OSError, match="not supported") as caught:
        Fixed().discard(0, 512)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_device_is_asked_for_whole_blocks_only(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of 4096-byte blocks and a guest that counts in 512 bytes."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(store, "_is_device", True)
    monkeypatch.setattr(
        "xenpy.drivers.block.stores.file.discard_device",
        lambda _, offset, length: asked.append((offset, length)),
    )
    store.discard(512, 4096)
    store.discard(512, 8192)
    store.discard(4096, 4096)
    assert asked == [(4096, 4096), (4096, 4096)]


def test_what_a_device_says_of_discards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sysfs of a disk (202:0) and of its partition (202:1), which has no queue of its own."""
    disk = tmp_path / "devices/xvda"
    part = disk / "xvda1"
    (disk / "queue").mkdir(parents=True)
    part.mkdir()
    (tmp_path / "202:0").symlink_to(disk)
    (tmp_path / "202:1").symlink_to(part)
    (disk / "queue/discard_max_bytes").write_text("2147450880\n")
    (disk / "queue/discard_granularity").write_text("65536\n")
    (disk / "discard_alignment").write_text("0\n")
    (part / "discard_alignment").write_text("32768\n")
    monkeypatch.setattr(discard, "SYS", tmp_path)
    assert discard.device_limits(os.makedev(202, 0)) == (65536, 0)
    assert discard.device_limits(os.makedev(202, 1)) == (65536, 32768)
    assert discard.device_limits(os.makedev(202, 2)) == (0, 0)
    (disk / "queue/discard_max_bytes").write_text("0\n")
    assert discard.device_limits(os.makedev(202, 0)) == (0, 0)


def test_a_read_only_store_refuses_to_write(image: Path) -> None:
    store = FileStore(os.open(image, os.O_RDWR | os.O_CLOEXEC), readonly=True)
    with pytest.raises(OSError, match="Read-only") as caught:
        store.write(memoryview(b"x" * 512), 0)
    assert caught.value.errno == errno.EROFS
    assert store.discard_granularity == 0
    with pytest.raises(OSError, match="Read-only"):
        store.discard(0, 4096)
    store.close()
    store.close()


def test_only_files_and_block_devices_are_disks() -> None:
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="neither a regular file nor"):
        FileStore(reader, readonly=True)
    os.close(reader)
    os.close(writer)


def test_of_two_who_flush_both_hear_of_a_lost_write() -> None:
    """The kernel tells the first; the second, on its way already, would hear that all is well."""
    durability = Durability()
    syncing, go_on = threading.Event(), threading.Event()
    outcomes: list[str] = []

    def lost() -> None:
        syncing.set()
        assert go_on.wait(30)
        raise OSError(errno.EIO, "lost")

    def flush(sync: Callable[[], None]) -> None:
        try:
            durability.flush(sync)
            outcomes.append("okay")
        except OSError as error:
            outcomes.append(str(error.strerror))

    first = threading.Thread(target=flush, args=(lost,))
    second = threading.Thread(target=flush, args=(lambda: None,))
    first.start()
    assert syncing.wait(30)
    second.start()
    go_on.set()
    first.join()
    second.join()
    assert "okay" not in outcomes
    assert len(outcomes) == 2


def test_direct_reads_and_writes_single_sectors(image: Path) -> None:
    store = FileStore(os.open(image, os.O_RDWR | os.O_CLOEXEC), readonly=False, direct=True)
    assert store.native.direct
    page = memoryview(mmap.mmap(-1, 4096))
    store.readinto(page[512:1024], 1536)
    assert page[512:1024] == bytes(range(256)) * 2
    store.write(page[1024:1536], 512)
    assert image.read_bytes()[512:1024] == bytes(512)
    store.flush()
    store.close()


def test_a_file_system_that_cannot_do_direct_goes_through_the_page_cache(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.preadv

    def four_kilobytes(fd: int, buffers: list[memoryview], offset: int) -> int:
        """As of a device of 4096-byte sectors."""
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT and offset % 4096:
            raise OSError(errno.EINVAL, "no")
        return whole(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", four_kilobytes)
    store = FileStore(os.open(image, os.O_RDWR | os.O_CLOEXEC), readonly=False, direct=True)
    assert not store.native.direct
    assert not fcntl.fcntl(store.native.fd, fcntl.F_GETFL) & os.O_DIRECT
    buffer = bytearray(512)
    store.readinto(memoryview(buffer), 512)
    assert buffer == bytes(range(256)) * 2
    store.close()


def test_a_discard_frees_the_file_s_blocks(store: FileStore, image: Path) -> None:
    assert store.discard_granularity == 4096
    store.flush()
    before = image.stat().st_blocks
    store.discard(4096, 8192)
    assert image.stat().st_blocks <= before - 16
    assert image.stat().st_size == 16384


def test_zeros_are_written_where_the_file_system_does_not_know_better(
    store: FileStore, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    store.zero(512, 1024)
    assert image.read_bytes()[512:1536] == bytes(1024)
    assert not store.can_zero
    with pytest.raises(OSError, match=r".+") as caught:
        store.discard(0, 4096)
    assert caught.value.errno == errno.EOPNOTSUPP
