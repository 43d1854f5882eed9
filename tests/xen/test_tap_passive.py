# SPDX-License-Identifier: MIT
"""A tap between Linux's xen-blkfront and Linux's xen-blkback: neither can tell."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.block_front import eventually
from conformance.guests import domains, inside
from conformance.kernel_disk import until_disk
from conformance.stock_backends import (
    USUAL,
    Nodes,
    a_loop,
    blkback_module,
    run,
    unload_blkback,
)
from conformance.tapping import tapping
from conformance.xen_env import nothing_left_in_the_hypervisor
from xenpy.capture import Capture
from xenpy.drivers.block.replay import wanted
from xenpy.vm import disk
from xenpy.vm.bench.disks import HOTPLUG, HOTPLUG_TEXT
from xenpy.xenstore import Store

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]

SIZE = 64 << 20
NAME = "vbd/0/51824"
DISK = Path("/dev/xvdh")
STATISTICS = Path("/sys/bus/xen-backend/devices/vbd-0-51824/statistics")
INTERVAL = "0.0002"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture(autouse=True, scope="module")
def blkback(nothing_left_in_the_hypervisor: None) -> Iterator[None]:
    run("modprobe", "xen-blkfront")
    with blkback_module():
        yield
    unload_blkback()


def counted() -> int:
    """Requests that the kernel's backend has answered."""
    names = ("rd_req", "wr_req", "f_req", "ds_req")
    return sum(int((STATISTICS / name).read_text()) for name in names)


def complaints() -> list[str]:
    """What the kernel has said of a disk or of grants."""
    words = ("xvdh", "grant", "blkfront", "blkback", "I/O error")
    lines = run("dmesg").splitlines()
    return [line for line in lines if any(word in line for word in words)]


def load(seconds: int) -> None:
    """Random reads and writes, each of which is verified."""
    text = run(
        "fio", "--name=load", f"--filename={DISK}", "--ioengine=libaio", "--direct=1",
        "--rw=randrw", "--bsrange=4k-44k", "--blockalign=4k", "--iodepth=16", f"--size={SIZE}",
        "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--randseed=7",
        "--time_based", f"--runtime={seconds}", "--fsync=64", "--output-format=json",
    )  # fmt: skip
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    assert job["error"] == 0
    assert min(job["read"]["total_ios"], job["write"]["total_ios"]) > 0


async def plugged(nodes: Nodes, device: str) -> None:
    """Made, and taken by dom0's own xen-blkfront."""
    await nodes.make({"type": "phy", "params": device, "mode": "w"})
    await nodes.plug(device)
    until_disk(DISK.name, SIZE // 512)


@pytest.mark.parametrize(
    ("persistent", "seconds"),
    [(1, 10), (0, 10), pytest.param(0, 600, marks=pytest.mark.long)],
)
@pytest.mark.timeout(1200)
def test_it_disturbs_nothing(image: Path, tmp_path: Path, persistent: int, seconds: int) -> None:
    """Under load, and while the device is taken away; and what it has not seen it counts."""
    asyncio.run(tapped_under_load(image, tmp_path, persistent, seconds))


async def tapped_under_load(image: Path, tmp_path: Path, persistent: int, seconds: int) -> None:
    capture = tmp_path / "disk.capture"
    said: list[str] = []
    with a_loop(image) as device, blkback_module(feature_persistent=persistent):
        async with Store.open() as store:
            nodes = Nodes(store, "vbd", USUAL)
            await plugged(nodes, device)
            quiet = complaints()
            words = ("--interval", INTERVAL, "--write", str(capture))
            with tapping(NAME, *words, by_itself=True) as first:
                said.append(first)
                # Not earlier: what the kernel reads of a new disk, the tap may come too late for.
                before = counted()
                load(seconds)
                total = counted() - before
                await nodes.remove()
                until_disk(DISK.name, 0)
        assert complaints() == quiet
    assert "passive, every 0.0002 s" in said[0]
    with capture.open("rb") as file:
        read = Capture(file)
        requests = [wanted(read.head.layout, record) for _, record in read]
    head, end = read.head, read.tail
    assert (head.exact, head.interval) == (False, 0.0002)
    assert end is not None
    lost = end.lost
    # What is asked for while the device closes is in it too.
    assert total <= len(requests) + lost <= total + 64
    assert {one.fields["status"] for one in requests} == {"okay"}
    assert {"read", "write"} <= {one.fields["op"] for one in requests}
    print(f"{seconds} s: {len(requests)} seen, {lost} lost of {total}: {lost / total:.1%}")


def test_a_guest_that_is_destroyed_is_gone(image: Path) -> None:
    """Its ring is given back when its device goes: no zombie is left."""
    HOTPLUG.write_text(HOTPLUG_TEXT)
    HOTPLUG.chmod(0o755)
    with a_loop(image) as device:
        script = f"backendtype=phy,script={HOTPLUG.name}"
        line = f"vdev=xvda,format=raw,access=w,{script},target={device}"
        disk.run("xenvm-guest", "create", "tapped", "--disk", line)
        try:
            domid = disk.domid("tapped")
            with tapping(f"vbd/{domid}/51712", "--write", "/dev/null") as said:
                assert "passive" in said
                assert inside("tapped", "dd if=/dev/xvda of=/dev/null bs=64k count=64 2>&1")
                disk.run("xl", "destroy", "tapped")
                eventually(lambda: "(null)" not in domains() and "tapped" not in domains())
        finally:
            subprocess.run(["xl", "destroy", "tapped"], check=False, stderr=subprocess.DEVNULL)
