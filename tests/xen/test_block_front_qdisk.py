# SPDX-License-Identifier: MIT
"""The frontend on a disk that QEMU serves (qdisk), in dom0."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conformance.block_front_suite import acted
from conformance.stock_backends import PATIENCE, USUAL, Nodes
from conformance.xen_env import nothing_left_in_the_hypervisor
from xenpy.drivers.block.front import BlockDevice
from xenpy.drivers.block.front_link import Wishes
from xenpy.xenstore import Store

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]

QEMU = "/usr/libexec/xen-qemu-system-i386"
SIZE = 8 << 20


@pytest.fixture(scope="module")
def qemu(
    nothing_left_in_the_hypervisor: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """As xencommons starts it for dom0's own disks.  The kernel's blkfront would take them."""
    subprocess.run(["modprobe", "-r", "xen-blkfront"], check=True)
    log = tmp_path_factory.mktemp("qemu") / "log"
    command = [
        QEMU, "-xen-domid", "0", "-xen-attach", "-name", "dom0", "-nographic", "-M", "xenpv",
        "-monitor", "none", "-serial", "none", "-parallel", "none", "-nodefaults",
        "-no-user-config",
    ]  # fmt: skip
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        yield
    finally:
        print(log.read_text())
        ended = process.poll()
        process.terminate()
        process.wait(PATIENCE)
        subprocess.run(["modprobe", "xen-blkfront"], check=True)
    assert ended is None, f"QEMU ended: {ended}"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@asynccontextmanager
async def a_qdisk(image: Path, **keys: str) -> AsyncIterator[tuple[Store, Nodes]]:
    async with Store.open() as store:
        nodes = Nodes(store, "qdisk", USUAL)
        usual = {"type": "qdisk", "params": f"aio:{image}", "hotplug-status": "connected"}
        await nodes.make({**usual, "discard-enable": 1, **keys})
        try:
            yield store, nodes
        finally:
            await nodes.remove()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("order", [0, 4])
@pytest.mark.usefixtures("qemu")
@acted
async def test_what_is_written_is_in_the_image(image: Path, order: int) -> None:
    content = random.Random(2).randbytes(SIZE)
    wishes = Wishes(queues=2, ring_page_order=order)
    async with a_qdisk(image) as (store, nodes):
        async with BlockDevice(store, nodes.front, wishes=wishes) as disk:
            assert (disk.size, disk.sector_size, disk.readonly) == (SIZE, 512, False)
            link = disk.front.link
            # QEMU knows neither several queues nor indirect requests.
            assert (len(link.queues), disk.disk.max_segments) == (1, 11)
            assert link.queues[0].depth == 32 << order
            assert digest(await disk.pread(SIZE, 0)) == digest(image.read_bytes())
            assert await disk.pwrite(content, 0) == SIZE
            await disk.flush()
            assert digest(image.read_bytes()) == digest(content)
            assert digest(await disk.pread(SIZE, 0)) == digest(content)
            assert disk.disk.discard
            before = image.stat().st_blocks
            await disk.discard(1 << 20, 4 << 20)
            await disk.flush()
            assert await disk.pread(4 << 20, 1 << 20) == bytes(4 << 20)
            assert image.stat().st_blocks < before
        assert await nodes.get("state") == "6"


@pytest.mark.usefixtures("qemu")
@acted
async def test_it_is_opened_again_and_again(image: Path) -> None:
    async with a_qdisk(image) as (store, nodes):
        for order in (0, 2, 0):
            wishes = Wishes(ring_page_order=order, data_pages=64)
            async with BlockDevice(store, nodes.front, wishes=wishes) as disk:
                content = random.Random(order).randbytes(1 << 20)
                await disk.pwrite(content, 0)
                assert await disk.pread(1 << 20, 0) == content


@pytest.mark.usefixtures("qemu")
@acted
async def test_a_cdrom(image: Path) -> None:
    """QEMU 10 itself refuses a read-only disk that is none: "Block node is read-only"."""
    rom = {"mode": "r", "device-type": "cdrom"}
    async with a_qdisk(image, **rom) as (store, nodes), BlockDevice(store, nodes.front) as disk:
        assert (disk.readonly, disk.disk.cdrom) == (True, True)
        assert digest(await disk.pread(SIZE, 0)) == digest(image.read_bytes())
