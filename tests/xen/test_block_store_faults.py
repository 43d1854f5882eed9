# SPDX-License-Identifier: MIT
"""Disks that fail below `xenpy serve block`: what dom0's own xen-blkfront is told (B3, L7).

An error is an error for the guest: never zeros, never what was read before, never a success.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, DaemonProcess
from conformance.dom0_disk import attached
from conformance.log_writes import a_mapped_device, dmsetup
from conformance.stock_backends import a_loop, run

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZE = 16 * MIB
SECTORS = SIZE // 512
BAD = 8 * MIB
"""Where a page of the disk is bad."""
EIO = "Input/output error"
MESSAGE_LIMIT = 150
"""Lines of the log, whatever a guest asks for; two disks that come and go are traced in some 60."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "below.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    run("modprobe", "xen-blkfront")
    with DaemonProcess(tmp_path) as daemon:
        yield daemon
        assert daemon.process.poll() is None, daemon.said()
        assert daemon.said().count("\n") < MESSAGE_LIMIT


class Disk:
    """/dev/xvdz past the kernel's page cache."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(-1, MIB)

    def read(self, length: int, offset: int) -> bytes:
        with memoryview(self._memory)[:length] as view:
            view[:] = b"\xc5" * length
            assert os.preadv(self.fd, [view], offset) == length
            return bytes(view)

    def write(self, content: bytes, offset: int) -> None:
        with memoryview(self._memory)[: len(content)] as view:
            view[:] = content
            assert os.pwritev(self.fd, [view], offset) == len(content)

    def failed_write(self, content: bytes, offset: int) -> bool:
        """Whether the kernel said EIO or ENOSPC, by which it knows a BLKIF_RSP_ERROR."""
        try:
            self.write(content, offset)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.ENOSPC):
                raise
            return True
        return False

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)


@contextmanager
def direct(target: Path) -> Iterator[Disk]:
    """`target` as a disk that is used past the page cache."""
    with attached(str(target), SECTORS) as path:
        disk = Disk(os.open(path, os.O_RDWR | os.O_DIRECT))
        try:
            yield disk
        finally:
            disk.close()


@contextmanager
def with_a_bad_page(image: Path) -> Iterator[Path]:
    """`image` as a disk one page of which cannot be read or written (dm-error)."""
    first, after = BAD // 512, BAD // 512 + 8
    with a_loop(image) as loop:
        table = (
            f"0 {first} linear {loop} 0\n{first} 8 error\n"
            f"{after} {SECTORS - after} linear {loop} {after}"
        )
        with a_mapped_device("xenpybad", table) as device:
            yield device


def errors(daemon: DaemonProcess) -> int:
    (counters,) = daemon.devices().values()
    return counters["errors"]


def test_what_cannot_be_read_is_an_error(daemon: DaemonProcess, image: Path) -> None:
    content = image.read_bytes()
    with with_a_bad_page(image) as device, direct(device) as disk:
        assert disk.read(MIB, BAD - MIB) == content[BAD - MIB : BAD]
        for length, offset in ((4096, BAD), (512, BAD + 2048), (65536, BAD - 32768)):
            with pytest.raises(OSError, match=EIO):
                disk.read(length, offset)
        assert disk.read(MIB, BAD + 4096) == content[BAD + 4096 : BAD + 4096 + MIB]
        assert errors(daemon) >= 3


def test_what_cannot_be_written_is_an_error_at_the_flush_and_from_then_on(
    daemon: DaemonProcess, image: Path
) -> None:
    """Linux's frontend takes a failed flush for one that is not supported (xen-blkfront.c,
    blkif_interrupt), so the writes that follow must not succeed."""
    content = image.read_bytes()
    with with_a_bad_page(image) as device, direct(device) as disk:
        disk.write(b"w" * 4096, BAD)
        with suppress(OSError):
            os.fsync(disk.fd)
        with pytest.raises(OSError, match=EIO):
            disk.write(b"x" * 4096, 0)
        assert disk.read(4096, 0) == content[:4096]
        assert errors(daemon) >= 2
    # Attached anew, on a disk that works: the image's user has seen to it.
    with direct(image) as disk:
        disk.write(b"y" * 4096, 0)
        os.fsync(disk.fd)
        assert errors(daemon) == 0
    assert image.read_bytes()[:4096] == b"y" * 4096


def test_a_write_that_is_lost_is_not_forgotten_by_the_next_daemon(
    tmp_path: Path, image: Path
) -> None:
    """The kernel has told of it, and would tell nobody a second time."""
    run("modprobe", "xen-blkfront")
    with (
        DaemonProcess(tmp_path) as daemon,
        with_a_bad_page(image) as device,
        direct(device) as disk,
    ):
        disk.write(b"w" * 4096, BAD)
        with suppress(OSError):
            os.fsync(disk.fd)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(PATIENCE) == 1, daemon.said()
        assert "writes are lost" in daemon.said()
        daemon.start()
        # Its capacity is 0 by now (xen-blkfront.c, blkfront_closing).
        assert disk.failed_write(b"x" * 4096, 0)


def test_a_disk_that_fails_for_a_while(daemon: DaemonProcess, image: Path) -> None:
    """dm-flakey with and without its outage."""
    content = image.read_bytes()
    with a_loop(image) as loop:
        table = f"0 {SECTORS} flakey {loop} 0"
        with a_mapped_device("xenpyflakey", f"{table} 3600 0") as device, direct(device) as disk:
            assert disk.read(4096, 0) == content[:4096]
            become("xenpyflakey", f"{table} 0 3600")
            with pytest.raises(OSError, match=EIO):
                disk.read(4096, BAD)
            become("xenpyflakey", f"{table} 3600 0")
            assert disk.read(4096, BAD) == content[BAD : BAD + 4096]
            disk.write(b"z" * 4096, BAD)
            os.fsync(disk.fd)
            assert errors(daemon) == 1
    assert image.read_bytes()[BAD : BAD + 4096] == b"z" * 4096


def become(name: str, table: str) -> None:
    """Give a device-mapper device another table."""
    dmsetup("suspend", "--nolockfs", name)
    dmsetup("load", name, "--table", table)
    dmsetup("resume", name)


def test_a_full_file_system(daemon: DaemonProcess, tmp_path: Path) -> None:
    """A sparse image on a tmpfs that has a quarter of its size."""
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={SIZE // 4}", "none", str(small))
    try:
        image = small / "disk.img"
        image.touch()
        os.truncate(image, SIZE)
        with direct(image) as disk:
            accepted = [
                offset
                for offset in range(0, SIZE, 65536)
                if not disk.failed_write(offset.to_bytes(8, "little") * 8192, offset)
            ]
            assert 0 < len(accepted) <= SIZE // 4 // 65536
            for offset in accepted:
                assert disk.read(65536, offset) == offset.to_bytes(8, "little") * 8192
            # Nobody was told that anything was written here.
            assert disk.read(65536, SIZE - 65536) == bytes(65536)
            assert errors(daemon) >= SIZE // 65536 - len(accepted)
    finally:
        run("umount", str(small))
