# SPDX-License-Identifier: MIT
"""`xenpy serve block` under dom0's own stock xen-blkfront: no guest, no xl, a real /dev/xvdz."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, XENPY, DaemonProcess

DISK = Path("/dev/xvdz")
SECTORS_OF_16_MIB = 32768


def xenpy(*words: str) -> None:
    subprocess.run([*XENPY, *words], check=True)


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(16 << 20))
    return path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    run("modprobe", "xen-blkfront")
    with DaemonProcess(tmp_path) as daemon:
        yield daemon


def wait_for_disk(*, present: bool) -> None:
    """Until the kernel shows the disk with its size, or no longer."""
    size = Path("/sys/class/block/xvdz/size")
    deadline = time.monotonic() + PATIENCE
    while (size.exists() and size.read_text().strip() != "0") is not present:
        assert time.monotonic() < deadline, f"/dev/xvdz present={not present} after {PATIENCE} s"
        time.sleep(0.05)


@pytest.fixture
def disk(daemon: DaemonProcess, image: Path) -> Iterator[Path]:
    xenpy("attach", "block", "0", "vdev=xvdz", f"target={image}")
    wait_for_disk(present=True)
    yield DISK
    xenpy("detach", "block", "0", "vdev=xvdz")
    wait_for_disk(present=False)
    assert daemon.process.poll() is None


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("1")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_driver_is_linux_s_own(disk: Path) -> None:
    assert Path("/sys/class/block/xvdz/device/driver").resolve().name == "vbd"
    assert Path("/sys/class/block/xvdz/size").read_text().strip() == str(SECTORS_OF_16_MIB)
    assert Path("/sys/class/block/xvdz/ro").read_text().strip() == "0"
    cache = Path("/sys/class/block/xvdz/queue/write_cache").read_text().strip()
    assert cache == "write back"


def test_reads_are_the_image(disk: Path, image: Path) -> None:
    assert digest(disk) == digest(image)


def test_writes_reach_the_image(disk: Path, image: Path) -> None:
    content = random.Random(2).randbytes(16 << 20)
    with disk.open("r+b") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    assert image.read_bytes() == content
    drop_caches()
    assert disk.read_bytes() == content


def test_a_file_system_lives_on_it(disk: Path, image: Path, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    run("mkfs.ext4", "-q", "-F", str(disk))
    run("mount", str(disk), str(mountpoint))
    rng = random.Random(3)
    files = {f"file{number}": rng.randbytes(rng.randrange(200_000)) for number in range(30)}
    for name, content in files.items():
        (mountpoint / name).write_bytes(content)
    run("umount", str(mountpoint))
    drop_caches()
    run("mount", str(disk), str(mountpoint))
    assert {path.name: path.read_bytes() for path in mountpoint.glob("file*")} == files
    run("umount", str(mountpoint))
    run("e2fsck", "-fn", str(image))


def test_the_counters_are_the_guest_s_own(disk: Path, daemon: DaemonProcess) -> None:
    before = [int(word) for word in Path("/sys/class/block/xvdz/stat").read_text().split()]
    with disk.open("r+b", buffering=0) as file:
        for turn in range(20):
            os.pwrite(file.fileno(), b"x" * 8192, turn * 65536)
            os.fsync(file.fileno())
    stat = [int(word) for word in Path("/sys/class/block/xvdz/stat").read_text().split()]
    assert stat[4] - before[4] >= 40
    (figures,) = daemon.devices().values()
    assert (figures["rd_req"], figures["rd_sect"]) == (stat[0], stat[2])
    # The kernel counts an fsync of the disk as a write of no sectors, and as a flush.
    assert (figures["wr_req"] + figures["f_req"], figures["wr_sect"]) == (stat[4], stat[6])
    assert figures["f_req"] == stat[15] >= 20
    assert figures["errors"] == 0


def test_a_read_only_disk(daemon: DaemonProcess, image: Path) -> None:
    xenpy("attach", "block", "0", "vdev=xvdz", f"target={image}", "mode=r")
    wait_for_disk(present=True)
    assert Path("/sys/class/block/xvdz/ro").read_text().strip() == "1"
    assert digest(DISK) == digest(image)
    xenpy("detach", "block", "0", "vdev=xvdz")
    wait_for_disk(present=False)


def test_an_image_in_use_is_refused_with_its_holder(
    daemon: DaemonProcess, disk: Path, image: Path
) -> None:
    command = [*XENPY, "attach", "block", "0", "vdev=xvdy", f"target={image}"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "in use by another disk of this daemon" in refused.stderr
    assert digest(disk) == digest(image)
