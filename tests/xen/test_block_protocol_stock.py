# SPDX-License-Identifier: MIT
"""`xenpy serve block` under dom0's own stock xen-blkfront: no guest, no xl, a real /dev/xvdz."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, DaemonProcess
from conformance.dom0_disk import DISK, attached, xenpy
from conformance.stock_backends import a_loop
from xenpy.drivers.block.vdev import parse_vdev

pytestmark = pytest.mark.slow

XVDZ = parse_vdev("xvdz")
SECTORS_OF_16_MIB = 32768
CDROM_GET_CAPABILITY = 0x5331
"""linux/cdrom.h"""


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(16 << 20))
    return path


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One for all: each test has a disk of its own."""
    run("modprobe", "xen-blkfront")
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


@pytest.fixture
def disk(daemon: DaemonProcess, image: Path) -> Iterator[Path]:
    with attached(str(image), SECTORS_OF_16_MIB) as disk:
        yield disk
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


def frontend_key(name: str) -> str:
    command = ["xenstore-read", f"/local/domain/0/device/vbd/{XVDZ}/{name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def direct_read(offset: int, length: int) -> bytes:
    """One read around the page cache."""
    fd = os.open(DISK, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as buffer:
            assert os.preadv(fd, [buffer], offset) == length
            return buffer[:]
    finally:
        os.close(fd)


def test_large_reads_and_writes_are_indirect_requests(
    disk: Path, image: Path, daemon: DaemonProcess
) -> None:
    most = int(Path("/sys/module/xen_blkfront/parameters/max_indirect_segments").read_text())
    assert most == 32
    assert Path("/sys/class/block/xvdz/queue/max_segments").read_text().strip() == "32"
    (before,) = daemon.devices().values()
    size = most * 4096
    assert direct_read(1 << 20, size) == image.read_bytes()[1 << 20 : (1 << 20) + size]
    (after,) = daemon.devices().values()
    # One request for all 128 KiB.
    assert after["indirect"] - before["indirect"] == 1
    assert after["rd_req"] - before["rd_req"] == 1
    assert after["rd_sect"] - before["rd_sect"] == size // 512
    content = random.Random(4).randbytes(size)
    fd = os.open(DISK, os.O_WRONLY | os.O_DIRECT)
    with mmap.mmap(-1, size) as buffer:
        buffer[:] = content
        os.pwritev(fd, [buffer], 2 << 20)
    os.close(fd)
    assert image.read_bytes()[2 << 20 : (2 << 20) + size] == content
    (last,) = daemon.devices().values()
    assert last["indirect"] - after["indirect"] == 1
    assert last["errors"] == 0


def test_its_grants_are_persistent(disk: Path, daemon: DaemonProcess) -> None:
    """Pages of data and pages of segments alike."""
    assert frontend_key("feature-persistent") == "1"
    for turn in range(20):
        direct_read(turn << 17, 1 << 17)
    (figures,) = daemon.devices().values()
    assert figures["indirect"] >= 20
    assert 0 < figures["grants_mapped"] <= 1056
    assert figures["grants_copied"] == 0


@pytest.mark.smp
def test_every_cpu_has_a_queue(disk: Path, image: Path, daemon: DaemonProcess) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    assert len(cpus) >= 2, "one CPU: dom0 has no second queue to show"
    queues = min(4, len(cpus))
    assert frontend_key("multi-queue-num-queues") == str(queues)
    assert len(list(Path("/sys/class/block/xvdz/mq").iterdir())) == queues
    assert frontend_key("queue-0/event-channel") != frontend_key("queue-1/event-channel")
    assert f"{queues} queues" in daemon.said()
    content = image.read_bytes()
    (before,) = daemon.devices().values()
    try:
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            assert direct_read(cpu << 16, 4096) == content[cpu << 16 :][:4096]
    finally:
        os.sched_setaffinity(0, cpus)
    (after,) = daemon.devices().values()
    assert after["rd_req"] - before["rd_req"] == len(cpus)


def test_discarded_blocks_are_given_back_and_read_as_zeros(
    disk: Path, image: Path, daemon: DaemonProcess
) -> None:
    queue = Path("/sys/class/block/xvdz/queue")
    assert (queue / "discard_granularity").read_text().strip() == "4096"
    content = image.read_bytes()
    before = image.stat().st_blocks
    run("blkdiscard", "-o", str(4 << 20), "-l", str(4 << 20), str(disk))
    assert direct_read(4 << 20, 1 << 17) == bytes(1 << 17)
    assert image.read_bytes() == content[: 4 << 20] + bytes(4 << 20) + content[8 << 20 :]
    assert image.stat().st_blocks <= before - (4 << 20) // 512
    (figures,) = daemon.devices().values()
    assert figures["ds_req"] > 0
    assert figures["errors"] == 0
    # What was not offered does not come.
    secure = ["blkdiscard", "--secure", "-o", "0", "-l", "4096", str(disk)]
    assert subprocess.run(secure, capture_output=True, check=False).returncode != 0
    assert image.read_bytes()[:4096] == content[:4096]


def test_the_guest_sees_a_new_size_while_it_uses_the_disk(disk: Path, image: Path) -> None:
    size = Path("/sys/class/block/xvdz/size")
    with disk.open("r+b", buffering=0) as file:
        os.truncate(image, 24 << 20)
        told = xenpy("block", "resize", "0", "vdev=xvdz")
        assert (told.stdout, told.returncode) == ("49152 sectors\n", 0), told.stderr
        deadline = time.monotonic() + PATIENCE
        while size.read_text().strip() != "49152":
            assert time.monotonic() < deadline, "the guest was not told"
            time.sleep(0.05)
        os.pwrite(file.fileno(), b"x" * 4096, (24 << 20) - 4096)
        os.fsync(file.fileno())
    assert image.read_bytes()[-4096:] == b"x" * 4096


def test_a_read_only_disk(daemon: DaemonProcess, image: Path) -> None:
    with attached(str(image), SECTORS_OF_16_MIB, "mode=r") as disk:
        assert Path("/sys/class/block/xvdz/ro").read_text().strip() == "1"
        assert digest(disk) == digest(image)


def test_a_cdrom(daemon: DaemonProcess, image: Path) -> None:
    """All that Linux makes of it (blkif_ioctl): to CDROM_GET_CAPABILITY it says that it is one."""
    words = ("mode=r", "device-type=cdrom")
    with attached(str(image), SECTORS_OF_16_MIB, *words) as disk:
        fd = os.open(disk, os.O_RDONLY)
        assert fcntl.ioctl(fd, CDROM_GET_CAPABILITY) == 0
        os.close(fd)
        assert digest(disk) == digest(image)


def test_a_disk_is_no_cdrom(disk: Path) -> None:
    fd = os.open(disk, os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        fcntl.ioctl(fd, CDROM_GET_CAPABILITY)
    os.close(fd)


def test_the_kernel_knows_the_sectors(disk: Path) -> None:
    queue = Path("/sys/class/block/xvdz/queue")
    assert (queue / "logical_block_size").read_text().strip() == "512"
    assert (queue / "physical_block_size").read_text().strip() == "4096"


@pytest.mark.parametrize("words", [(), ("sector-unit=512",)], ids=" ".join)
def test_a_disk_of_4096_byte_sectors(
    daemon: DaemonProcess, image: Path, words: Sequence[str]
) -> None:
    """Linux counts 512 bytes, as blkif.h says since Xen 4.20, and asks for whole sectors."""
    with (
        a_loop(image, "--sector-size", "4096") as loop,
        attached(loop, SECTORS_OF_16_MIB, *words) as disk,
    ):
        queue = Path("/sys/class/block/xvdz/queue")
        assert (queue / "logical_block_size").read_text().strip() == "4096"
        content = random.Random(6).randbytes(1 << 20)
        with disk.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), content, 3 << 20)
            # The kernel reads the rest of the sector first.
            os.pwrite(file.fileno(), b"x" * 512, (5 << 20) + 512)
            os.fsync(file.fileno())
        assert digest(disk) == digest(Path(loop))
    written = image.read_bytes()
    assert written[3 << 20 : 4 << 20] == content
    assert written[(5 << 20) + 512 : (5 << 20) + 1024] == b"x" * 512


def test_a_secure_discard_of_memory(daemon: DaemonProcess) -> None:
    with attached("memory:16M", SECTORS_OF_16_MIB) as disk:
        with disk.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"s" * 65536, 0)
            os.fsync(file.fileno())
        run("blkdiscard", "--secure", "-o", "0", "-l", "32768", str(disk))
        drop_caches()
        with disk.open("rb") as file:
            assert file.read(65536) == bytes(32768) + b"s" * 32768
        (counters,) = daemon.devices().values()
        assert (counters["ds_req"], counters["ds_sect"]) == (1, 64)


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[int]:
    """dom0's blkfront asks for rings of so many pages."""
    order = 3
    run("modprobe", "-r", "xen-blkfront")
    run("modprobe", "xen-blkfront", f"max_ring_page_order={order}")
    yield 1 << order
    run("modprobe", "-r", "xen-blkfront")
    run("modprobe", "xen-blkfront")


def test_rings_of_several_pages(pages: int, disk: Path, image: Path) -> None:
    assert 1 << int(frontend_key("ring-page-order")) == pages
    # Of one CPU, and so one queue, the keys are where they were before there were several.
    below = "queue-0/" if len(os.sched_getaffinity(0)) > 1 else ""
    assert frontend_key(f"{below}ring-ref{pages - 1}") != frontend_key(f"{below}ring-ref0")
    content = random.Random(5).randbytes(4 << 20)
    with disk.open("r+b") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    assert image.read_bytes()[: 4 << 20] == content
    drop_caches()
    assert digest(disk) == digest(image)


def test_an_image_in_use_is_refused_with_its_holder(
    daemon: DaemonProcess, disk: Path, image: Path
) -> None:
    refused = xenpy("attach", "block", "0", "vdev=xvdy", f"target={image}")
    assert refused.returncode == 1
    assert "in use by another disk of this daemon" in refused.stderr
    assert digest(disk) == digest(image)
