# SPDX-License-Identifier: MIT
"""The frontend on a disk that the kernel's own xen-blkback serves, in dom0."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conformance.block_front_suite import acted
from conformance.stock_backends import Nodes, a_loop, blkback_module, run, unload_blkback
from conformance.xen_env import nothing_left_in_the_hypervisor
from xenpy.drivers.block.front import BlockDevice
from xenpy.drivers.block.front_link import Wishes
from xenpy.drivers.block.front_protocol import indirect_pages
from xenpy.errors import XenError
from xenpy.xenstore import Store

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]

SIZE = 16 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture(autouse=True, scope="module")
def blkback(nothing_left_in_the_hypervisor: None) -> Iterator[None]:
    """Other tests want the kernel's backend away."""
    with blkback_module():
        yield
    unload_blkback()


@asynccontextmanager
async def a_stock_disk(device: str, wishes: Wishes, mode: str = "w") -> AsyncIterator[BlockDevice]:
    async with Store.open() as store:
        nodes = Nodes(store, "vbd")
        await nodes.make({"type": "phy", "params": device, "mode": mode})
        try:
            await nodes.plug(device)
            async with BlockDevice(store, nodes.front, wishes=wishes) as disk:
                yield disk
        finally:
            await nodes.remove()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


WAYS: Mapping[str, tuple[Wishes, Mapping[str, int]]] = {
    "one page": (Wishes(ring_page_order=0, data_pages=64, max_segments=11), {}),
    "indirect": (Wishes(), {}),
    "pages": (Wishes(ring_page_order=4), {}),
    "queues": (Wishes(queues=2, ring_page_order=1), {"max_queues": 2}),
    "not persistent": (Wishes(), {"feature_persistent": 0}),
    "we are not persistent": (Wishes(persistent=False), {}),
}


@pytest.mark.parametrize("way", WAYS)
@acted
async def test_what_is_written_is_in_the_image(image: Path, way: str) -> None:
    wishes, parameters = WAYS[way]
    content = random.Random(2).randbytes(SIZE)
    with blkback_module(**parameters), a_loop(image) as device:
        async with a_stock_disk(device, wishes) as disk:
            assert (disk.size, disk.sector_size, disk.readonly) == (SIZE, 512, False)
            link = disk.front.link
            assert len(link.queues) == wishes.queues
            assert [queue.depth for queue in link.queues] == [
                32 << wishes.ring_page_order
            ] * wishes.queues
            assert len(link.queues[0].ring_refs) == 1 << wishes.ring_page_order
            assert disk.disk.persistent == (parameters.get("feature_persistent") != 0)
            assert disk.disk.max_segments == 256
            assert digest(await disk.pread(SIZE, 0)) == digest(image.read_bytes())
            assert await disk.pwrite(content, 0) == SIZE
            await disk.flush()
            assert digest(await disk.pread(SIZE, 0)) == digest(content)
            print(way, link.ports, indirect_pages(wishes.max_segments))
        # Opened once more: the next connection, with other rings.
    assert digest(image.read_bytes()) == digest(content)


@acted
async def test_calls_at_once_of_every_size(image: Path) -> None:
    rng = random.Random(3)
    model = bytearray(image.read_bytes())
    with blkback_module(max_queues=2), a_loop(image) as device:
        async with a_stock_disk(device, Wishes(queues=2)) as disk:
            assert len(disk.front.link.queues) == 2
            for _ in range(4):
                calls = []
                for span in rng.sample(range(32), 32):
                    start = span * 1024 + rng.randrange(256)
                    begin, end = start * 512, (start + rng.randrange(1, 768)) * 512
                    if rng.random() < 0.5:
                        model[begin:end] = part = rng.randbytes(end - begin)
                        calls.append(disk.pwrite(part, begin))
                    else:
                        calls.append(check(disk, begin, bytes(model[begin:end])))
                await asyncio.gather(*calls)
            await disk.flush()
            assert digest(await disk.pread(SIZE, 0)) == digest(model)
    assert digest(image.read_bytes()) == digest(model)


async def check(disk: BlockDevice, offset: int, content: bytes) -> None:
    assert await disk.pread(len(content), offset) == content


@acted
async def test_discard_gives_the_image_s_blocks_back(image: Path) -> None:
    with a_loop(image) as device:
        async with a_stock_disk(device, Wishes()) as disk:
            assert disk.disk.discard
            assert not disk.disk.secure_discard
            before = image.stat().st_blocks
            await disk.discard(1 << 20, 8 << 20)
            await disk.flush()
            assert image.stat().st_blocks <= before - ((8 << 20) // 512)
            assert await disk.pread(8 << 20, 1 << 20) == bytes(8 << 20)
            with pytest.raises(XenError) as caught:
                await disk.discard(0, 512, secure=True)
            assert caught.value.errno == errno.EOPNOTSUPP
            assert disk.disk.barrier
            await disk.barrier()


@acted
async def test_a_read_only_disk(image: Path) -> None:
    with a_loop(image, "--read-only") as device:
        async with a_stock_disk(device, Wishes(), mode="r") as disk:
            assert disk.readonly
            assert digest(await disk.pread(SIZE, 0)) == digest(image.read_bytes())
            with pytest.raises(XenError) as caught:
                await disk.pwrite(bytes(512), 0)
            assert caught.value.errno == errno.EROFS


@acted
async def test_sectors_of_4096_bytes(image: Path) -> None:
    """Linux counts in units of 512 bytes all the same, and so do we."""
    with a_loop(image, "--sector-size", "4096") as device:
        async with a_stock_disk(device, Wishes()) as disk:
            assert (disk.size, disk.sector_size) == (SIZE, 4096)
            assert digest(await disk.pread(SIZE, 0)) == digest(image.read_bytes())
            await disk.pwrite(b"s" * 8192, 12288)
            await disk.flush()
            with pytest.raises(XenError) as caught:
                await disk.pread(512, 0)
            assert caught.value.errno == errno.EINVAL
    assert image.read_bytes()[12288 : 12288 + 8192] == b"s" * 8192


@acted
async def test_another_size_of_the_device_reaches_it(image: Path) -> None:
    """blkback looks with each request; what lies beyond the end by now is its error."""
    with a_loop(image) as device:
        async with a_stock_disk(device, Wishes()) as disk:
            for size in (24 << 20, 1 << 20):
                with image.open("r+b") as file:
                    file.truncate(size)
                run("losetup", "--set-capacity", device)
                if size < SIZE:
                    with pytest.raises(XenError) as caught:
                        await disk.pread(4096, 8 << 20)
                    assert caught.value.errno == errno.EIO
                assert len(await disk.pread(4096, 0)) == 4096
                async with asyncio.timeout(60):
                    while disk.size != size:
                        await asyncio.sleep(0.05)
                assert await disk.pread(4096, size - 4096) == image.read_bytes()[-4096:]


@acted
async def test_it_is_opened_again_and_again(image: Path) -> None:
    """The same device, closed and opened with other rings, as blkback sees a reboot."""
    with blkback_module(max_queues=2), a_loop(image) as device:
        async with Store.open() as store:
            nodes = Nodes(store, "vbd")
            await nodes.make({"type": "phy", "params": device})
            await nodes.plug(device)
            for queues, order in ((2, 0), (1, 2), (1, 0), (2, 1)):
                wishes = Wishes(queues=queues, ring_page_order=order, data_pages=64)
                async with BlockDevice(store, nodes.front, wishes=wishes) as disk:
                    assert len(disk.front.link.queues) == queues
                    content = random.Random(order).randbytes(1 << 20)
                    await disk.pwrite(content, 0)
                    assert await disk.pread(1 << 20, 0) == content
                assert await nodes.get("state") == "6"
            await nodes.remove()


@acted
async def test_the_toolstack_takes_it_away(image: Path) -> None:
    """`xl block-detach`: online = 0, state = 5, with calls in flight."""
    with a_loop(image) as device:
        async with Store.open() as store:
            nodes = Nodes(store, "vbd")
            await nodes.make({"type": "phy", "params": device})
            await nodes.plug(device)
            async with BlockDevice(store, nodes.front) as disk:
                calls = [asyncio.create_task(disk.pread(1 << 20, n << 20)) for n in range(8)]
                await asyncio.sleep(0)
                await nodes.remove()
                done = await asyncio.gather(*calls, return_exceptions=True)
                for number, outcome in enumerate(done):
                    if isinstance(outcome, bytes):
                        start = number << 20
                        assert outcome == image.read_bytes()[start : start + (1 << 20)]
                    else:
                        assert isinstance(outcome, XenError)
                with pytest.raises(XenError) as caught:
                    await disk.pread(512, 0)
                assert caught.value.errno == errno.ENODEV
