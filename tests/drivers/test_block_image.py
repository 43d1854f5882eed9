# SPDX-License-Identifier: MIT
"""Which image, and that nobody else writes it: our own devices, QEMU, loop devices."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xenpy.backend import DeviceError
from xenpy.drivers.block import image_lock
from xenpy.drivers.block.image import ImageKeys, open_image
from xenpy.drivers.block.image_lock import FLOCK, open_image_file


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    return path


@contextmanager
def opened(path: Path, *, readonly: bool = False, force: bool = False) -> Iterator[int]:
    fd = open_image_file(str(path), readonly=readonly, force=force)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ("/srv/disk.img", "/srv/disk.img"),
        ("aio:/srv/disk.img", "/srv/disk.img"),
        ("/srv/vhd:odd name", "/srv/vhd:odd name"),
    ],
)
def test_params_name_a_path(params: str, path: str) -> None:
    keys = ImageKeys.parse({"params": params, "mode": "w", "device-type": "disk"})
    assert keys == ImageKeys(path, readonly=False, cdrom=False)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ("", "no image is named"),
        ("vhd:/srv/disk.vhd", "format 'vhd' is not served"),
        ("qcow2:/srv/disk", "format 'qcow2' is not served"),
        ("disk.img", "not an absolute path"),
        ("aio:disk.img", "not an absolute path"),
        ("aio:", "not an absolute path"),
        ("aio:../../etc/shadow", "not an absolute path"),
        ("/srv/a\0b", "NUL"),
    ],
)
def test_other_params_are_refused(params: str, reason: str) -> None:
    with pytest.raises(DeviceError, match=reason):
        ImageKeys.parse({"params": params, "mode": "w"})


def test_mode_and_device_type() -> None:
    keys = ImageKeys.parse({"params": "/a", "mode": "r", "device-type": "cdrom"})
    assert keys.readonly
    assert keys.cdrom


@pytest.mark.parametrize("mode", [None, "", "w!", "rw", "R"])
def test_a_mode_that_is_neither_r_nor_w_is_refused(mode: str | None) -> None:
    keys = {"params": "/a"} | ({} if mode is None else {"mode": mode})
    with pytest.raises(DeviceError, match="mode is"):
        ImageKeys.parse(keys)


def test_a_missing_image_says_so(tmp_path: Path) -> None:
    keys = ImageKeys(str(tmp_path / "none"), readonly=False, cdrom=False)
    with pytest.raises(DeviceError, match="No such file"):
        open_image(keys, force=False)


def test_an_empty_image_is_no_disk(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"x" * 511)
    keys = ImageKeys(str(tmp_path / "empty"), readonly=False, cdrom=False)
    with pytest.raises(DeviceError, match="is empty"):
        open_image(keys, force=False)


def test_a_fifo_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DeviceError, match="neither a regular file"):
        open_image_file(str(tmp_path / "fifo"), readonly=True, force=False)


def test_two_writers_are_refused_and_the_holder_is_named(image: Path) -> None:
    with (
        opened(image),
        pytest.raises(DeviceError, match=r"in use by another disk of this daemon; .*force=1"),
    ):
        open_image_file(str(image), readonly=False, force=False)


def test_a_reader_beside_a_writer_is_refused(image: Path) -> None:
    with opened(image), pytest.raises(DeviceError, match="in use"):
        open_image_file(str(image), readonly=True, force=False)


def test_a_writer_beside_a_reader_is_refused(image: Path) -> None:
    with opened(image, readonly=True), pytest.raises(DeviceError, match="in use"):
        open_image_file(str(image), readonly=False, force=False)


def test_readers_share(image: Path) -> None:
    with opened(image, readonly=True), opened(image, readonly=True):
        pass


def test_force_overrides(image: Path) -> None:
    with opened(image), opened(image, force=True):
        pass


def test_a_close_gives_the_image_free(image: Path) -> None:
    with opened(image):
        pass
    with opened(image):
        pass


def test_a_refusal_leaves_nothing_open_or_locked(image: Path) -> None:
    with opened(image):
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(DeviceError, match="in use"):
                open_image_file(str(image), readonly=False, force=False)
        assert sorted(os.listdir("/proc/self/fd")) == before
    with opened(image):
        pass


def test_the_same_file_under_another_name_is_the_same(image: Path, tmp_path: Path) -> None:
    os.link(image, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(image)
    with opened(image):
        for name in ("hard", "soft"):
            with pytest.raises(DeviceError, match="in use"):
                open_image_file(str(tmp_path / name), readonly=False, force=False)


@pytest.mark.parametrize("byte", [101, 103, 200, 201])
def test_the_bytes_that_qemu_locks_are_respected(image: Path, byte: int) -> None:
    """A lock of QEMU's on any of them conflicts with a writer; see file-posix.c."""
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    with pytest.raises(DeviceError, match="in use"):
        open_image_file(str(image), readonly=False, force=False)
    os.close(fd)


@pytest.mark.parametrize("byte", [100, 102, 202])
def test_what_qemu_shares_is_no_conflict(image: Path, byte: int) -> None:
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    with opened(image):
        pass
    os.close(fd)


def test_the_bytes_that_we_lock_are_qemu_s(image: Path) -> None:
    with opened(image):
        fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        locked = []
        for byte in range(95, 210):
            request = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            answer = FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request))
            if answer[0] != fcntl.F_UNLCK:
                locked.append(byte)
        os.close(fd)
    assert locked == [100, 101, 201, 203]


@pytest.fixture
def qemu_io() -> str:
    program = shutil.which("qemu-io")
    if program is None:
        pytest.skip("qemu-io (Debian: qemu-utils) is not installed")
    return program


def test_qemu_itself_refuses_an_image_that_we_serve(image: Path, qemu_io: str) -> None:
    command = [qemu_io, "-f", "raw", "-c", "read 0 512", str(image)]
    with opened(image):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "lock" in refused.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_we_refuse_an_image_that_qemu_serves(image: Path, qemu_io: str) -> None:
    command = [qemu_io, "-f", "raw", str(image)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("read 0 512\n")
        process.stdin.flush()
        while "ops" not in (line := process.stdout.readline()):
            assert line, "qemu-io ended"
        with pytest.raises(DeviceError, match=r"in use by qemu-io \(\d+\)"):
            open_image_file(str(image), readonly=False, force=False)
        process.communicate("quit\n")


@pytest.fixture
def sys_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "sys"
    monkeypatch.setattr(image_lock, "SYS", root)
    return root


def loop_device(root: Path, number: int, backing: str, *, readonly: bool) -> None:
    loop = root / f"block/loop{number}"
    (loop / "loop").mkdir(parents=True)
    (loop / "loop/backing_file").write_text(f"{backing}\n")
    (loop / "ro").write_text(f"{int(readonly)}\n")


def test_an_image_under_a_loop_device_is_refused(image: Path, sys_tree: Path) -> None:
    loop_device(sys_tree, 3, "/nowhere (deleted)", readonly=False)
    loop_device(sys_tree, 7, str(image), readonly=False)
    for readonly in (False, True):
        with pytest.raises(DeviceError, match="in use by /dev/loop7"):
            open_image_file(str(image), readonly=readonly, force=False)


def test_a_read_only_loop_device_allows_readers_only(image: Path, sys_tree: Path) -> None:
    loop_device(sys_tree, 0, str(image), readonly=True)
    with opened(image, readonly=True):
        pass
    with pytest.raises(DeviceError, match="in use by /dev/loop0"):
        open_image_file(str(image), readonly=False, force=False)
