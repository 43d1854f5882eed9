# SPDX-License-Identifier: MIT
"""`xenpy proxy` between the kernel's own halves: dom0's xen-blkfront and its xen-blkback."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from conformance.block_front_suite import acted
from conformance.daemon_process import PATIENCE, XENPY, DaemonProcess
from conformance.dom0_disk import DISK, attached, xenpy
from conformance.fio import OPERATIONS, SEED, fio
from conformance.guests import MIB, make_image
from conformance.kernel_disk import until_disk
from conformance.log_writes import a_mapped_device, dmsetup
from conformance.proxying import proxying
from conformance.stock_backends import (
    DEVID,
    ELSEWHERE,
    USUAL,
    Nodes,
    a_loop,
    blkback_module,
    run,
    unload_blkback,
)
from conformance.tapping import tapping
from conformance.xen_env import nothing_left_in_the_hypervisor
from xenpy.xenstore import Store

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]

SIZE = 32 * MIB
BITS = 3
ROTATE = f"python,class=/root/xenpy/docs/howto/rotate_filter.py:Rotate,bits={BITS}"
DELAY = 3
"""Milliseconds."""


def rotated(content: bytes) -> bytes:
    """As docs/howto/rotate_filter.py has it on the disk behind."""
    return content.translate(bytes((b << BITS | b >> (8 - BITS)) & 255 for b in range(256)))


MAPPED = "xenpyslow"


@asynccontextmanager
async def stock_disk(image: Path, place: str, *, mapped: bool = False) -> AsyncIterator[Nodes]:
    """A disk of dom0 that the kernel's blkback serves from a loop device.

    Args:
        mapped: with a device of device-mapper on it, `MAPPED`.
    """
    with ExitStack() as held:
        held.callback(unload_blkback)
        held.enter_context(blkback_module())
        device = held.enter_context(a_loop(image))
        if mapped:
            table = f"0 {SIZE // 512} linear {device} 0"
            device = str(held.enter_context(a_mapped_device(MAPPED, table)))
        async with Store.open() as store:
            nodes = Nodes(store, "vbd", place)
            await nodes.make({"type": "phy", "params": device})
            try:
                await nodes.plug(device)
                yield nodes
            finally:
                await nodes.remove()


def driver_of(device: str) -> str:
    """Which driver of the kernel has a device of one of the two Xen buses."""
    return Path(f"/sys/bus/{device}/driver").resolve().name


def between_stock_halves(front: str, directory: Path) -> None:
    filters = ("--filter", f"delay,read={DELAY},write={DELAY}", "--filter", ROTATE)
    with proxying(front, SIZE // 512, directory, *filters) as name:
        devid = name.rsplit("/", 1)[1]
        assert driver_of(f"xen/devices/vbd-{devid}") == "vbd"
        assert driver_of(f"xen-backend/devices/vbd-0-{DEVID}") == "vbd"
        words = ("--rundir", str(directory), "--write", str(directory / "capture"))
        with tapping(name, *words) as said:
            assert "exact" in said
            (job,) = fio(DISK, f"--size={SIZE}")
        reads, writes = job["read"]["total_ios"], job["write"]["total_ios"]
        assert job["error"] == 0
        # What was written is read once more.
        assert min(reads, writes) > OPERATIONS // 4
        for kind in ("read", "write"):
            assert job[kind]["clat_ns"]["min"] >= DELAY * 1_000_000
        print(f"seed {SEED}: {reads} reads, {writes} writes; {run('ls', '-l', words[-1])}")
        seen = DISK.read_bytes()
    (directory / "seen").write_bytes(seen)


@acted
async def test_fio_finds_every_checksum_right_through_a_delay_and_a_rewrite(
    tmp_path: Path,
) -> None:
    run("modprobe", "xen-blkfront")
    image = make_image(tmp_path / "disk.img", SIZE // MIB)
    async with stock_disk(image, ELSEWHERE) as nodes:
        await asyncio.to_thread(between_stock_halves, nodes.front, tmp_path)
    seen = (tmp_path / "seen").read_bytes()
    assert any(seen)
    # No assert on two disks: pytest would show them.
    same = rotated(seen) == image.read_bytes()
    assert same, "what is on the disk behind is not what was written, rotated"


def let_go_and_stood_between(directory: Path) -> None:
    name = f"vbd-{DEVID}"
    deadline = time.monotonic() + PATIENCE
    while driver_of(f"xen/devices/{name}") != "vbd" or not Path("/dev/xvdh").exists():
        assert time.monotonic() < deadline, "dom0's blkfront has not taken its disk"
        time.sleep(0.05)
    words = ("block", "0", "vdev=xvdz", "target=xvdh", "--rundir", str(directory))
    done = subprocess.run([*XENPY, "proxy", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"echo {name} > /sys/bus/xen/drivers/vbd/unbind" in done.stderr
    Path("/sys/bus/xen/drivers/vbd/unbind").write_text(name)
    with proxying("xvdh", SIZE // 512, directory, "--filter", "stats"):
        run("mkfs.ext4", "-q", str(DISK))
    assert "stats_write_calls" in (directory / "proxy.log").read_text()


@acted
async def test_a_disk_that_dom0_s_kernel_has_let_go_of(tmp_path: Path) -> None:
    """As docs/howto/stand-between.md has it."""
    run("modprobe", "xen-blkfront")
    image = make_image(tmp_path / "disk.img", SIZE // MIB)
    async with stock_disk(image, USUAL):
        await asyncio.to_thread(let_go_and_stood_between, tmp_path)
    run("e2fsck", "-fn", str(image))


def read_once(disk: str) -> subprocess.Popen[bytes]:
    """By dom0's kernel, not out of its cache."""
    return subprocess.Popen(
        ["dd", f"if=/dev/{disk}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"],
        stderr=subprocess.DEVNULL,
    )


def hung(front: str, directory: Path) -> None:
    with DaemonProcess(directory) as daemon, attached("memory:1M", 2048):
        done = xenpy("attach", "block", "0", "vdev=xvdy", f"target=xen:{front}")
        assert done.returncode == 0, done.stderr
        until_disk("xvdy", SIZE // 512)
        assert read_once("xvdy").wait(PATIENCE) == 0
        dmsetup("suspend", "--nolockfs", MAPPED)
        try:
            waiting = read_once("xvdy")
            for _ in range(10):
                assert read_once("xvdz").wait(PATIENCE) == 0
                assert len(daemon.devices()) == 2
                assert waiting.poll() is None
        finally:
            dmsetup("resume", MAPPED)
        assert waiting.wait(PATIENCE) == 0
        done = xenpy("detach", "block", "0", "vdev=xvdy")
        assert done.returncode == 0, done.stderr
        until_disk("xvdy", 0)


@acted
async def test_a_backend_that_hangs_is_waited_for_and_nothing_else_waits(tmp_path: Path) -> None:
    run("modprobe", "xen-blkfront")
    image = make_image(tmp_path / "disk.img", SIZE // MIB)
    async with stock_disk(image, ELSEWHERE, mapped=True) as nodes:
        await asyncio.to_thread(hung, nodes.front, tmp_path)
