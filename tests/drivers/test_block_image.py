# SPDX-License-Identifier: MIT
"""Which image, and that nobody else writes it: our own devices, QEMU, loop devices."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.nbd_server import have_libnbd
from xenpy.backend import DeviceError
from xenpy.devlog import BoundedLog
from xenpy.drivers.block import image_lock
from xenpy.drivers.block.filters.base import FilterPlace
from xenpy.drivers.block.image import ImageKeys, open_image
from xenpy.drivers.block.image_lock import FLOCK, open_image_file
from xenpy.drivers.block.settings import Settings
from xenpy.drivers.block.store import Store


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    return path


def opened_image(keys: ImageKeys, **options: str) -> Store:
    log = BoundedLog(logging.getLogger("image"), "vbd3/1/51712")
    place = FilterPlace("vbd3/1/51712", keys.readonly, log)
    return open_image(keys, Settings.parse(options), place)


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
        ("aio:memory:64M", "memory:64M"),
        ("null:1G", "null:1G"),
        ("aio:nbd://host/export,1", "nbd://host/export,1"),
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
        ("aio:aio:/srv/a", "not an absolute path"),
        ("memory:", "no size"),
        ("memory:63", "multiple of 512"),
        ("null:0", "at least one sector"),
        ("nbd:host:10809", "is no NBD server; give nbd:unix:"),
        ("nbds://host/", "TLS is not served"),
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
        opened_image(keys)


def test_an_empty_image_is_no_disk(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"x" * 511)
    keys = ImageKeys(str(tmp_path / "empty"), readonly=False, cdrom=False)
    with pytest.raises(DeviceError, match="is empty"):
        opened_image(keys)


def test_a_read_only_filter_opens_the_image_for_reading(image: Path) -> None:
    keys = ImageKeys.parse({"params": str(image), "mode": "w"})
    with opened(image, readonly=True):
        for words in ("readonly", "cow", "stats cow"):
            store = opened_image(keys, filter=words)
            assert store.readonly == (words == "readonly")
            store.close()
        with pytest.raises(DeviceError, match="in use"):
            opened_image(keys)


def test_the_disk_s_own_filters_replace_the_daemon_s(image: Path) -> None:
    keys = {"params": str(image), "mode": "w"}
    for words, readonly in ((None, True), ("", False), ("stats", False)):
        given = {} if words is None else {"filter": words}
        store = opened_image(ImageKeys.parse({**keys, **given}), filter="readonly")
        assert store.readonly == readonly
        store.close()


def test_a_filter_that_cannot_be_used_leaves_nothing_open(image: Path, tmp_path: Path) -> None:
    keys = ImageKeys.parse({"params": str(image), "mode": "w"})
    (tmp_path / "other").write_bytes(b"something else")
    before = sorted(os.listdir("/proc/self/fd"))
    for words, reason in (
        (f"log,path={tmp_path}/none/log", "cannot open .*/disk.img: .*/none/log: No such file"),
        (f"stats cow,overlay={tmp_path}/other", "other is no overlay of ours"),
    ):
        with pytest.raises(DeviceError, match=reason):
            opened_image(keys, filter=words)
    assert sorted(os.listdir("/proc/self/fd")) == before
    with opened(image):
        pass


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("slow", "there is no filter 'slow'; there are cow, delay, drop, error"),
        ("delay,red=5", "delay has no 'red'; it takes read, write, flush"),
        ("delay,read", "delay: 'read' is not key=value"),
        ("delay,read=1,read=2", "given twice"),
        ("delay,read=soon", "delay: read is 'soon'; give 0 to 60000"),
        ("delay,read=nan", "give 0 to 60000"),
        ("delay,read=-1", "give 0 to 60000"),
        ("readonly,x=1", "readonly has no 'x'; it takes nothing"),
        ("error,operation=seek", "error: operation is 'seek'; give one of all, read, write"),
        ("error,errno=EVIL", "error: errno is 'EVIL'"),
        ("error,from=2K,to=1K", "is not before"),
        ("error,probability=2", "give 0 to 1"),
        ("log", "give path=/an/absolute/one"),
        ("log,path=log", "give path=/an/absolute/one"),
        ("cow,overlay=here", "give overlay=/an/absolute/one"),
        ("rate", "give bps=10M, iops=500 or both"),
        ("rate,bps=100", "give 65536 or more"),
        ("rate,iops=0.1", "give 1 to"),
        ("rate,bps=fast", "rate: bps: 'fast' is no size"),
        ("stats,name=a-b", "give letters"),
        ("'", "No closing quotation"),
    ],
)
def test_filters_that_make_no_sense_are_refused_with_a_hint(words: str, reason: str) -> None:
    with pytest.raises(DeviceError, match=reason):
        ImageKeys.parse({"params": "/a", "mode": "w", "filter": words})


WORDS = st.lists(
    st.sampled_from([
        *"abz019/:,.+=?&%-[]@'\" \\\0\udce9²", "nbd:unix:/", "nbd://", "nbd+unix:///", "?socket=",
        "memory:", "null:", "python:", "aio:", "cow", "error,", "log,", "path=/", "from=", "bps=",
    ])
).map("".join)  # fmt: skip


@given(params=WORDS, words=WORDS)
def test_whatever_is_asked_for_is_a_target_or_refused(params: str, words: str) -> None:
    """The toolstack is trusted; a slip of its user's must not look like a fault of ours."""
    for keys in ({"params": params}, {"params": "/a", "filter": words}):
        with suppress(DeviceError):
            keys = ImageKeys.parse({"mode": "r", **keys})
            assert keys.target == params.removeprefix("aio:") or keys.filters is not None


@pytest.mark.parametrize(
    ("params", "words", "reason"),
    [
        ("null:1M", "log,path=/nowhere\0b", "NUL"),
        ("nbd://a..b/", "", "cannot open nbd://a..b/: .*label"),
        (f"nbd:unix:/{'a' * 120}", "", "cannot open nbd:unix:.*: AF_UNIX path too long"),
        ("memory:9000000T", "", "is no multiple of 512 bytes below 2\\^63"),
    ],
)
def test_odd_words_fail_as_all_others_do(params: str, words: str, reason: str) -> None:
    have_libnbd()
    with pytest.raises(DeviceError, match=reason):
        opened_image(ImageKeys.parse({"params": params, "mode": "w", "filter": words}))


def test_a_comma_in_a_value_is_written_twice(tmp_path: Path, image: Path) -> None:
    keys = ImageKeys.parse({"params": str(image), "mode": "w"})
    opened_image(keys, filter=f"'log,path={tmp_path}/a,,b c,limit=9'").close()
    assert (tmp_path / "a,b c").exists()


def test_a_python_target_is_allowed_by_the_operator_alone() -> None:
    keys = ImageKeys.parse({"params": "python:/srv/x.py:X", "mode": "w"})
    with pytest.raises(DeviceError, match="allow it with python=1"):
        opened_image(keys)
    with pytest.raises(DeviceError, match="No such file"):
        opened_image(keys, python="1")


@pytest.mark.parametrize("mode", ["r", "w"])
def test_memory_and_null_disks(mode: str) -> None:
    for target in ("memory:64K", "null:64K"):
        store = opened_image(ImageKeys.parse({"params": f"aio:{target}", "mode": mode}))
        assert (store.size, store.readonly) == (65536, mode == "r")
        store.close()


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
