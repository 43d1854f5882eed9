# SPDX-License-Identifier: MIT
"""Targets and filters under stock peers: dom0's own xen-blkfront, guests made by xl, qemu-nbd."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, DaemonProcess
from conformance.dom0_disk import attached, until_size, xenpy
from conformance.guests import FILE_SYSTEM, MIB, inside
from conformance.nbd_server import QemuNbd
from xenpy.drivers.block.vdev import parse_vdev
from xenpy.vm import disk

pytestmark = pytest.mark.slow

SIZE = 16 * MIB


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One for all: each test has a disk of its own."""
    disk.run("modprobe", "xen-blkfront")
    directory = tmp_path_factory.mktemp("daemon")
    with DaemonProcess(directory, "python=1", "--filter", "stats") as daemon:
        yield daemon


@pytest.fixture
def daemon(served: DaemonProcess) -> Iterator[DaemonProcess]:
    yield served
    assert served.process.poll() is None, served.said()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QemuNbd]:
    image = tmp_path / "disk.qcow2"
    disk.run("qemu-img", "create", "-q", "-f", "qcow2", str(image), "64M")
    with QemuNbd(image, tmp_path / "nbd.sock", "--format=qcow2") as server:
        yield server


def write_and_read_back(path: Path, count: int) -> bytes:
    """Random bytes to a disk and back, past the page cache in between; what was written."""
    content = random.Random(count).randbytes(count)
    with path.open("r+b") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    Path("/proc/sys/vm/drop_caches").write_text("1")
    with path.open("rb") as file:
        assert hashlib.sha256(file.read(count)).digest() == hashlib.sha256(content).digest()
    return content


def test_a_memory_disk(daemon: DaemonProcess) -> None:
    with attached("memory:16M", SIZE // 512) as path:
        write_and_read_back(path, SIZE)
        (counters,) = daemon.devices().values()
        assert counters["stats_write_bytes"] == counters["wr_sect"] * 512 >= SIZE
        assert counters["stats_flush_calls"] == counters["f_req"] > 0
        print(counters)


def test_a_qcow2_image_through_qemu_nbd(
    daemon: DaemonProcess, server: QemuNbd, tmp_path: Path
) -> None:
    with attached(server.target, 64 * MIB // 512) as path:
        content = write_and_read_back(path, SIZE)
    server.kill()
    raw = tmp_path / "raw"
    disk.run("qemu-img", "convert", "-O", "raw", str(tmp_path / "disk.qcow2"), str(raw))
    assert raw.read_bytes()[:SIZE] == content


def test_an_nbd_server_that_dies_is_an_error_for_the_kernel(
    daemon: DaemonProcess, server: QemuNbd
) -> None:
    with attached(server.target, 64 * MIB // 512) as path:
        write_and_read_back(path, MIB)
        server.kill()
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(fd, 4096, 32 * MIB)
        os.close(fd)


def test_a_file_that_is_copied_on_write(daemon: DaemonProcess, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"a" * SIZE)
    filters = f"filter=log,path={tmp_path}/log cow,overlay={tmp_path}/overlay"
    with attached(str(image), SIZE // 512, filters) as path:
        content = write_and_read_back(path, MIB)
        with path.open("rb") as file:
            file.seek(MIB)
            assert file.read() == b"a" * (SIZE - MIB)
    assert image.read_bytes() == b"a" * SIZE
    with attached(str(image), SIZE // 512, "mode=r", filters) as path, path.open("rb") as file:
        assert file.read(2 * MIB) == content + b"a" * MIB
    assert "write 0+" in (tmp_path / "log").read_text()


def test_a_store_in_python(daemon: DaemonProcess) -> None:
    target = "python:/root/xenpy/docs/howto/ram_store.py:RamStore?size=16M"
    with attached(target, SIZE // 512) as path:
        write_and_read_back(path, SIZE)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nbd:unix:/nowhere", "cannot open nbd:unix:/nowhere: No such file"),
        ("python:/nowhere.py:X", "No such file"),
    ],
)
def test_what_cannot_be_served_fails_the_attach(
    daemon: DaemonProcess, target: str, reason: str
) -> None:
    done = xenpy("attach", "block", "0", "vdev=xvdz", f"target={target}")
    assert done.returncode == 1
    assert reason in done.stderr


def test_what_was_in_memory_is_not_taken_over(daemon: DaemonProcess) -> None:
    done = xenpy("attach", "block", "0", "vdev=xvdz", "target=memory:16M")
    assert done.returncode == 0, done.stderr
    until_size(SIZE // 512)
    daemon.stop()
    daemon.start()
    deadline = time.monotonic() + PATIENCE
    while "ended with the daemon that served it" not in daemon.said():
        assert time.monotonic() < deadline, daemon.said()
        time.sleep(0.1)
    done = xenpy("detach", "block", "0", "vdev=xvdz")
    assert done.returncode == 0, done.stderr
    until_size(0)


def test_xl_hands_any_target_on_commas_included(daemon: DaemonProcess, tmp_path: Path) -> None:
    """`target=` takes the rest of the line (xl-disk-configuration(5)); 4.17's xl refuses tap."""
    if disk.xen_version() < disk.XL_TAKES_TAP:
        with pytest.raises(disk.CommandError):
            disk.run("xl", "block-attach", "0", disk.line(Path("memory:16M"), "xvdz"))
        return
    for target in ("null:16M", "memory:16M", "python:/root/xenpy/docs/howto/ram_store.py:RamStore"):
        disk.run("xl", "block-attach", "0", disk.line(Path(target), "xvdz"))
        until_size(SIZE // 512)
        assert f'params = "aio:{target}"' in disk.run("xenstore-ls", "/local/domain/0/backend/vbd3")
        disk.run("xl", "block-detach", "0", "xvdz")
        until_size(0)
    odd = f"nbd+unix:///a,b?socket={tmp_path}/no,such:socket"
    with pytest.raises(disk.CommandError) as caught:
        disk.run("xl", "block-attach", "0", f"{disk.line(Path('X'), 'xvdz')[:-1]}{odd}")
    assert f"cannot open {odd}: No such file" in str(caught.value)
    # xl leaves the nodes of what it could not attach.
    for path in ("device/vbd", "backend/vbd3/0"):
        disk.run("xenstore-rm", f"/local/domain/0/{path}/{parse_vdev('xvdz')}")
    deadline = time.monotonic() + PATIENCE
    while daemon.devices():
        assert time.monotonic() < deadline, daemon.said()
        time.sleep(0.1)


def guests_disks(daemon: DaemonProcess) -> list[dict[str, int]]:
    """The counters of the disks that are not dom0's own."""
    found = daemon.devices().items()
    return [counters for name, counters in found if not name.startswith("vbd3/0/")]


def test_a_guest_s_file_system_is_in_the_qcow2_image(
    daemon: DaemonProcess, server: QemuNbd, tmp_path: Path
) -> None:
    disk.create("nbd", Path(server.target))
    try:
        said = inside("nbd", FILE_SYSTEM).split()[0]
        (counters,) = guests_disks(daemon)
        assert (counters["errors"], counters["refused"]) == (0, 0)
    finally:
        disk.run("xl", "destroy", "nbd")
    deadline = time.monotonic() + PATIENCE
    while guests_disks(daemon):
        assert time.monotonic() < deadline, daemon.said()
        time.sleep(0.1)
    server.kill()
    raw = tmp_path / "raw"
    disk.run("qemu-img", "convert", "-O", "raw", str(tmp_path / "disk.qcow2"), str(raw))
    disk.run("e2fsck", "-fn", str(raw))
    found = subprocess.run(["debugfs", "-R", "cat /file", raw], check=True, capture_output=True)
    assert hashlib.sha256(found.stdout).hexdigest() == said
