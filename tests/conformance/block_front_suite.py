# SPDX-License-Identifier: MIT
"""The block frontend, against an honest backend, against ours and against hostile ones: one
suite for the fakes and for a real Xen.

A module that runs it imports every name and defines a fixture `env`, a
`FrameworkEnvironment`.  The ids in the docstrings (F1 ...) are those of the project's
hostile-peer checklist.  After each case nothing may be left held.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conformance.block_front import PATIENCE, eventually
from conformance.framework_front import KIND, FrameworkEnvironment
from conformance.model_backend import (
    BARRIER,
    DISCARD,
    ERROR,
    FLUSH,
    INDIRECT,
    OFFERS,
    OKAY,
    READ,
    WRITE,
    ModelBackend,
)
from xenpy.attach import Endpoints, refresh
from xenpy.drivers.block.back import BlockBackend
from xenpy.drivers.block.front import BlockDevice
from xenpy.drivers.block.front_link import Wishes
from xenpy.errors import PeerError, XenError, XenTimeoutError
from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantShare
from xenpy.service import Service
from xenpy.types import PAGE_SIZE
from xenpy.xenstore import Store

SMALL = Wishes(ring_page_order=0, data_pages=24)
RSP_PROD = 8
"""Where ring.h has it."""


class Access:
    """`FrontendAccess` of an environment."""

    def __init__(self, env: FrameworkEnvironment) -> None:
        self._env = env

    def open_share(self) -> GrantShare:
        return self._env.open_share()

    def open_evtchn(self) -> EventChannels:
        return self._env.open_channels()


def acted(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a coroutine as a test; pytest sees its parameters."""

    @functools.wraps(test)
    def run(**arguments: object) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(4 * PATIENCE):
                await test(**arguments)

        asyncio.run(bounded())

    return run


@pytest.fixture(autouse=True)
def nothing_left(env: FrameworkEnvironment) -> Iterator[None]:
    before = env.census()
    yield
    eventually(lambda: env.census() == before)


@asynccontextmanager
async def opened(env: FrameworkEnvironment) -> AsyncIterator[Store]:
    async with Store.open(env.store_path(), timeout=PATIENCE) as store:
        yield store


@asynccontextmanager
async def a_backend(
    env: FrameworkEnvironment, offers: Mapping[str, str] = OFFERS, **how: int
) -> AsyncIterator[ModelBackend]:
    """Waiting for a frontend; released and removed afterwards."""
    async with opened(env) as store:
        backend = ModelBackend(env, store, offers=offers, **how)
        await backend.make()
        try:
            yield backend
        finally:
            await backend.close()


def device(backend: ModelBackend, wishes: Wishes = SMALL, **how: float | bool) -> BlockDevice:
    return BlockDevice(backend.store, backend.front, xen=Access(backend.env), wishes=wishes, **how)


@asynccontextmanager
async def a_disk(
    backend: ModelBackend, wishes: Wishes = SMALL, **how: float | bool
) -> AsyncIterator[BlockDevice]:
    """Connected; the backend follows the close."""
    disk = device(backend, wishes, **how)
    _, disk = await asyncio.gather(backend.connect(), disk.__aenter__())
    try:
        yield disk
    finally:
        following = asyncio.create_task(backend.follow_close())
        await disk.__aexit__(None, None, None)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


@asynccontextmanager
async def connected(
    env: FrameworkEnvironment, offers: Mapping[str, str] = OFFERS, wishes: Wishes = SMALL,
    **how: float | bool,
) -> AsyncIterator[tuple[ModelBackend, BlockDevice]]:  # fmt: skip
    async with a_backend(env, offers) as backend, a_disk(backend, wishes, **how) as disk:
        yield backend, disk


# ------------------------------------------------------------------ it works


FEATURES = {
    "least": ({}, Wishes()),
    "indirect": ({"feature-max-indirect-segments": "256"}, Wishes()),
    "two tables": (OFFERS, Wishes(data_pages=640, max_segments=600)),
    "pages": ({"max-ring-page-order": "4"}, Wishes(ring_page_order=4, data_pages=64)),
    "queues": ({"multi-queue-max-queues": "2"}, Wishes(queues=4, data_pages=64)),
    "everything": (OFFERS, Wishes(queues=2, ring_page_order=1)),
}


@pytest.mark.parametrize("name", FEATURES)
@acted
async def test_what_is_written_is_read(env: FrameworkEnvironment, name: str) -> None:
    offers, wishes = FEATURES[name]
    rng = random.Random(1)
    async with (
        a_backend(env, offers, sectors=8192) as backend,
        a_disk(backend, wishes) as disk,
        backend.serving(),
    ):
        assert (disk.size, disk.sector_size, disk.readonly) == (8192 * 512, 512, False)
        content = rng.randbytes(disk.size)
        assert await disk.pwrite(content, 0) == disk.size
        assert bytes(backend.disk) == content
        assert await disk.pread(disk.size, 0) == content
        parts = [bytearray(512), bytearray(5 * 512), bytearray(PAGE_SIZE)]
        assert await disk.preadv(parts, 7 * 512) == 14 * 512
        assert b"".join(parts) == content[7 * 512 : 21 * 512]
        await disk.pwritev([b"a" * 512, memoryview(b"b" * 1024)], 3 * 512)
        assert bytes(backend.disk[1536:3072]) == b"a" * 512 + b"b" * 1024
        assert await disk.pread(0, 512) == b""
    used = {request.operation for request in backend.requests}
    assert (INDIRECT in used) == ("feature-max-indirect-segments" in offers)
    queues = {request.queue for request in backend.requests}
    assert len(queues) == min(wishes.queues, int(offers.get("multi-queue-max-queues", "1")))
    most = max(len(request.segments) for request in backend.requests)
    assert most == {"least": 11, "indirect": 256, "two tables": 600, "everything": 256}.get(
        name, 11
    )


@acted
async def test_random_calls_at_once_leave_what_a_model_says(env: FrameworkEnvironment) -> None:
    """More at once than the ring and its pages hold; no two that run together overlap."""
    rng = random.Random(2)
    wishes = Wishes(queues=2, ring_page_order=0, data_pages=40)
    async with connected(env, OFFERS, wishes) as (backend, disk), backend.serving():
        model = bytearray(disk.size)
        for _ in range(6):
            calls: list[Awaitable[object]] = []
            expected: list[bytes | None] = []
            spans = rng.sample(range(64), 64)
            for span in spans:
                start, length = span * 64 + rng.randrange(32), rng.randrange(1, 33)
                begin, end = start * 512, (start + length) * 512
                if rng.random() < 0.5:
                    model[begin:end] = content = rng.randbytes(end - begin)
                    calls.append(disk.pwrite(content, begin))
                    expected.append(None)
                else:
                    calls.append(disk.pread(end - begin, begin))
                    expected.append(bytes(model[begin:end]))
            results = await asyncio.gather(*calls)
            for result, right in zip(results, expected, strict=True):
                assert right is None or result == right
        assert backend.disk == model


@acted
async def test_flush_barrier_and_discard_are_asked_for(env: FrameworkEnvironment) -> None:
    async with connected(env) as (backend, disk), backend.serving():
        await disk.pwrite(b"x" * PAGE_SIZE, 0)
        await disk.flush()
        await disk.barrier()
        await disk.discard(1024, 2048)
        await disk.discard(0, 512, secure=True)
        asked = [(r.operation, r.sector, r.sectors, r.flag) for r in backend.requests]
        assert asked == [
            (WRITE, 0, 0, 0), (FLUSH, 0, 0, 0), (BARRIER, 0, 0, 0), (DISCARD, 2, 4, 0),
            (DISCARD, 0, 1, 1),
        ]  # fmt: skip
        assert (
            bytes(backend.disk[:PAGE_SIZE]) == bytes(512) + b"x" * 512 + bytes(2048) + b"x" * 1024
        )


@acted
async def test_what_is_not_offered_is_not_asked_for(env: FrameworkEnvironment) -> None:
    async with connected(env, {}) as (backend, disk):
        for call in (
            disk.flush(), disk.barrier(), disk.discard(0, 512), disk.discard(0, 512, secure=True)
        ):  # fmt: skip
            with pytest.raises(XenError) as caught:
                await call
            assert caught.value.errno == errno.EOPNOTSUPP
        assert backend.rings[0].take() == []


@acted
async def test_a_barrier_stands_in_for_a_flush(env: FrameworkEnvironment) -> None:
    async with connected(env, {"feature-barrier": "1"}) as (backend, disk), backend.serving():
        await disk.flush()
        assert [request.operation for request in backend.requests] == [BARRIER]


@pytest.mark.parametrize(
    ("offset", "length"), [(1, 512), (512, 100), (-512, 512), (4096 * 512, 512), (512, 4096 * 512)]
)
@acted
async def test_what_is_out_of_bounds_is_refused_here(
    env: FrameworkEnvironment, offset: int, length: int
) -> None:
    async with connected(env) as (backend, disk):
        for call in (
            disk.pread(length, offset), disk.pwrite(bytes(length), offset),
            disk.discard(offset, length),
        ):  # fmt: skip
            with pytest.raises(XenError) as caught:
                await call
            assert caught.value.errno == errno.EINVAL
        assert backend.rings[0].take() == []


@acted
async def test_a_read_only_disk_is_not_written(env: FrameworkEnvironment) -> None:
    async with connected(env, {**OFFERS, "info": "4"}) as (backend, disk):
        assert disk.readonly
        for call in (disk.pwrite(bytes(512), 0), disk.discard(0, 512)):
            with pytest.raises(XenError) as caught:
                await call
            assert caught.value.errno == errno.EROFS
        assert backend.rings[0].take() == []


@acted
async def test_sectors_of_4096_bytes_are_counted_in_512s(env: FrameworkEnvironment) -> None:
    offers = {**OFFERS, "sector-size": "4096"}
    async with connected(env, offers) as (backend, disk), backend.serving():
        assert (disk.size, disk.sector_size) == (4096 * 512, 4096)
        await disk.pwrite(b"s" * 4096, 8192)
        assert (backend.requests[0].sector, backend.disk[8192:12288]) == (16, b"s" * 4096)
        with pytest.raises(XenError, match="multiples of 4096"):
            await disk.pread(512, 0)


@acted
async def test_a_resized_disk_shows_its_size(env: FrameworkEnvironment) -> None:
    async with connected(env) as (backend, disk), backend.serving():
        # As blkback does: the size, then its state once more.
        await backend.say(sectors=1024, state=4)
        async with asyncio.timeout(PATIENCE):
            while disk.size != 1024 * 512:
                await asyncio.sleep(0.01)
        with pytest.raises(XenError, match="524288 bytes"):
            await disk.pread(512, 1024 * 512)
        await disk.pread(512, 1023 * 512)


@acted
async def test_an_error_of_the_backend_is_the_call_s(env: FrameworkEnvironment) -> None:
    async with connected(env) as (backend, disk):
        for status, number in ((ERROR, errno.EIO), (-2, errno.EOPNOTSUPP)):
            call = asyncio.create_task(disk.pread(512, 0))
            backend.answer((await backend.take())[0], status)
            with pytest.raises(XenError) as caught:
                await call
            assert caught.value.errno == number
        async with backend.serving():
            assert await disk.pread(512, 0) == bytes(512)


@acted
async def test_one_bad_piece_fails_the_call_and_leaves_the_buffer_alone(
    env: FrameworkEnvironment,
) -> None:
    async with connected(env, {}) as (backend, disk):
        backend.disk[:] = b"d" * len(backend.disk)
        buffer = bytearray(22 * PAGE_SIZE)
        call = asyncio.create_task(disk.preadv([buffer], 0))
        first, second = await backend.take(2)
        backend.answer(first, ERROR)
        with pytest.raises(XenError):
            await call
        backend.answer(second, backend.execute(second))
        async with backend.serving():
            # Its pages are free again only now, and the next one gets them.
            await disk.pread(22 * PAGE_SIZE, 0)
        assert buffer == bytes(len(buffer))


@acted
async def test_a_cancelled_read_leaves_its_buffer_and_keeps_its_pages(
    env: FrameworkEnvironment,
) -> None:
    async with connected(env) as (backend, disk):
        buffer = bytearray(11 * PAGE_SIZE)
        pool = disk.front.link.queues[0].pool
        call = asyncio.create_task(disk.preadv([buffer], 0))
        (request,) = await backend.take()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert pool.free == pool.count - 11
        backend.disk[:] = b"d" * len(backend.disk)
        backend.answer(request, backend.execute(request))
        async with backend.serving():
            await disk.pread(512, 0)
        assert pool.free == pool.count
        assert buffer == bytes(len(buffer))


@acted
async def test_a_call_that_waits_for_room_can_be_cancelled(env: FrameworkEnvironment) -> None:
    async with connected(env, {}) as (backend, disk):
        calls = [asyncio.create_task(disk.pread(11 * PAGE_SIZE, 0)) for _ in range(5)]
        held = await backend.take(2)
        await asyncio.sleep(0.05)
        assert disk.front.link.queues[0].in_flight == 2, "24 pages are two such requests"
        for call in calls[2:4]:
            call.cancel()
        for request in held:
            backend.answer(request, backend.execute(request))
        async with backend.serving():
            await asyncio.gather(*calls[:2], calls[4])
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes[2:4]] == [asyncio.CancelledError] * 2


@pytest.mark.parametrize("name", ["read", "write", "flush", "discard"])
@acted
async def test_a_call_whose_turn_comes_as_the_connection_ends_is_told(
    env: FrameworkEnvironment, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would ever answer it, and a write would go to pages that are gone."""
    async with connected(env, OFFERS, answer_bound=math.inf) as (backend, disk):
        held = [asyncio.create_task(disk.pread(512, 0)) for _ in range(24)]
        held += [asyncio.create_task(disk.flush()) for _ in range(8)]
        requests = await backend.take(32)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "read": lambda: disk.pread(512, 0),
            "write": lambda: disk.pwrite(bytes(512), 0),
            "flush": disk.flush,
            "discard": lambda: disk.discard(0, 512),
        }
        call = asyncio.ensure_future(calls[name]())
        await asyncio.sleep(0.01)
        link = disk.front.link
        pool = link.queues[0].pool
        give, reason = pool.give, XenError(errno.ECONNRESET, "block")

        def give_and_end(pages: Sequence[int]) -> None:
            """The turn comes by these pages, and the end before it is taken."""
            give(pages)
            asyncio.get_running_loop().call_soon(link.close, reason)

        monkeypatch.setattr(pool, "give", give_and_end)
        backend.answer(requests[0])
        outcomes = await asyncio.gather(call, *held[1:], return_exceptions=True)
        assert set(outcomes) == {reason}
        assert await held[0] == bytes(512)
        assert link.queues[0].in_flight == 0


@acted
async def test_full_rings_are_notified_once_a_turn(env: FrameworkEnvironment) -> None:
    async with connected(env) as (backend, disk):
        calls = [asyncio.create_task(disk.flush()) for _ in range(80)]
        requests = await backend.take(32)
        await asyncio.sleep(0.05)
        assert len(requests) == 32
        assert backend.rings[0].take() == [], "a ring of one page has 32 slots"
        for request in requests:
            backend.answer(request)
        async with backend.serving():
            await asyncio.gather(*calls)


# ------------------------------------------------------------------ its life


@acted
async def test_a_disk_is_opened_again_and_again(env: FrameworkEnvironment) -> None:
    async with a_backend(env) as backend:
        for turn in range(3):
            several = turn == 1
            wishes = Wishes(queues=2 if several else 1, ring_page_order=turn, data_pages=32)
            async with a_disk(backend, wishes) as disk, backend.serving():
                await disk.pwrite(bytes([turn]) * 512, 0)
                assert await disk.pread(512, 0) == bytes([turn]) * 512
            keys = await backend.store.read_tree(backend.front, depth=2)
            assert keys["state"] == "6"
            # Of no connection before is anything left.
            assert ("queue-1/ring-ref0" in keys) == several
            assert ("ring-ref" in keys) == (turn == 0)
            await backend.say(state=2)


@acted
async def test_a_backend_that_starts_over_is_connected_again(env: FrameworkEnvironment) -> None:
    async with connected(env) as (backend, disk):
        call = asyncio.create_task(disk.pread(512, 0))
        await backend.take()
        backend.release()
        await backend.say(state=2)
        with pytest.raises(XenError) as caught:
            await call
        assert caught.value.errno == errno.ECONNRESET
        # It waits for the connection.
        call = asyncio.create_task(disk.pread(512, 0))
        await backend.connect()
        async with backend.serving():
            assert await call == bytes(512)


@acted
async def test_a_flush_that_fails_forgets_nothing_that_was_written_beside_it(
    env: FrameworkEnvironment,
) -> None:
    """The next one, by another connection, would vouch for what the old backend may have lost."""
    async with connected(env) as (backend, disk):
        flush = asyncio.create_task(disk.flush())
        (asked,) = await backend.take()
        write = asyncio.create_task(disk.pwrite(b"x" * 512, 0))
        backend.answer((await backend.take())[0])
        await write
        backend.answer(asked, ERROR)
        with pytest.raises(XenError):
            await flush
        backend.release()
        await backend.say(state=2)
        await backend.connect()
        async with backend.serving():
            with pytest.raises(XenError, match="may have lost what was written") as caught:
                await disk.flush()
            assert caught.value.errno == errno.ECONNRESET
            await disk.flush()


@acted
async def test_a_backend_that_closes_gets_what_is_in_flight_answered_first(
    env: FrameworkEnvironment,
) -> None:
    async with connected(env) as (backend, disk):
        call = asyncio.create_task(disk.pread(512, 0))
        (request,) = await backend.take()
        await backend.say(state=5)
        await backend.until("5")
        await asyncio.sleep(0.2)
        assert await backend.store.read(f"{backend.front}/state") == "5"
        backend.answer(request, backend.execute(request))
        assert await call == bytes(512)
        await backend.until("6")
        backend.release()
        await backend.say(state=6)
        call = asyncio.create_task(disk.pread(512, 0))
        await asyncio.sleep(0.2)
        assert not call.done(), "it waits for the disk to come back"
        # The toolstack has second thoughts.
        await backend.say(state=2)
        await backend.connect()
        async with backend.serving():
            assert await call == bytes(512)


@pytest.mark.parametrize("gone", ["front", "back"])
@acted
async def test_a_device_that_is_removed_is_over(env: FrameworkEnvironment, gone: str) -> None:
    async with connected(env) as (backend, disk):
        call = asyncio.create_task(disk.pread(512, 0))
        await backend.take()
        await backend.store.rm(getattr(backend, gone))
        for waiting in (call, disk.pread(512, 0)):
            with pytest.raises(XenError) as caught:
                await waiting
            assert caught.value.errno == errno.ENODEV


@acted
async def test_reconfiguring_is_nothing_to_us(env: FrameworkEnvironment) -> None:
    async with connected(env) as (backend, disk), backend.serving():
        for state in (7, 8, 7, 4):
            await backend.say(state=state)
        assert await disk.pread(512, 0) == bytes(512)


@acted
async def test_a_device_that_another_frontend_drives_is_left_alone(
    env: FrameworkEnvironment,
) -> None:
    async with connected(env) as (backend, disk), backend.serving():
        with pytest.raises(XenError, match="another frontend shows CONNECTED") as caught:
            async with device(backend):
                raise AssertionError
        assert caught.value.errno == errno.EBUSY
        assert await disk.pread(512, 0) == bytes(512)


@acted
async def test_what_a_dead_frontend_left_is_taken_over(env: FrameworkEnvironment) -> None:
    async with a_backend(env) as backend:
        await backend.say(state=4)
        await backend.store.write(f"{backend.front}/state", 4)
        taking = asyncio.create_task(device(backend, take_over=True).__aenter__())
        await backend.until("6")
        await backend.say(state=6)
        await backend.until("1")
        await backend.say(state=2)
        await backend.connect()
        disk = await taking
        async with backend.serving():
            assert await disk.pread(512, 0) == bytes(512)
        await asyncio.gather(backend.follow_close(), disk.__aexit__(None, None, None))


@pytest.mark.parametrize("state", ["1", "2", "6"])
@acted
async def test_a_backend_that_does_not_come_is_a_time_out(
    env: FrameworkEnvironment, state: str
) -> None:
    async with a_backend(env) as backend:
        await backend.say(state=state)
        with pytest.raises(XenTimeoutError, match="the backend shows"):
            async with device(backend, timeout=0.3):
                raise AssertionError
        assert await backend.store.read(f"{backend.front}/state") == "6"


# ------------------------------------------------------------------ our own backend


@asynccontextmanager
async def our_daemon(env: FrameworkEnvironment, store: Store) -> AsyncIterator[Service]:
    """`xenpy serve block` in this very loop."""
    service = Service(
        store, KIND, BlockBackend, xen=env.back_xen(), domid=env.back_domid,
        options={"queues": "2"},
    )  # fmt: skip
    serving = asyncio.create_task(service.run())
    await service.ready.wait()
    try:
        yield service
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def our_backend(
    env: FrameworkEnvironment, image: Path, mode: str = "w"
) -> AsyncIterator[ModelBackend]:
    """A disk of it; the model only makes the nodes."""
    async with opened(env) as store, our_daemon(env, store):
        nodes = await an_image(env, store, image, mode)
        try:
            yield nodes
        finally:
            await nodes.close()


async def an_image(
    env: FrameworkEnvironment, store: Store, image: Path, mode: str = "w"
) -> ModelBackend:
    keys = {"params": str(image), "mode": mode, "device-type": "disk"}
    nodes = ModelBackend(env, store, offers=keys)
    await nodes.make()
    await nodes.say(state=1)
    return nodes


@pytest.mark.parametrize("persistent", [True, False])
@acted
async def test_our_own_backend_serves_it(
    env: FrameworkEnvironment, tmp_path: Path, persistent: bool
) -> None:
    rng = random.Random(3)
    image = tmp_path / "disk.img"
    content = rng.randbytes(1 << 20)
    image.write_bytes(content)
    wishes = Wishes(ring_page_order=3, data_pages=64, persistent=persistent)
    async with our_backend(env, image) as nodes:
        for turn in range(2):
            async with device(nodes, wishes, timeout=PATIENCE) as disk:
                assert disk.size == 1 << 20
                assert await disk.pread(1 << 20, 0) == content
                await disk.pwrite(rng.randbytes(512), turn * 512)
                await disk.flush()
                content = image.read_bytes()
    async with (
        our_backend(env, image, "r") as nodes,
        device(nodes, wishes, timeout=PATIENCE) as disk,
    ):
        assert disk.readonly
        assert await disk.pread(1 << 20, 0) == content


@acted
async def test_all_that_our_own_backend_offers(env: FrameworkEnvironment, tmp_path: Path) -> None:
    """Large requests, two queues, barriers, discards, and another size while connected."""
    rng = random.Random(5)
    image = tmp_path / "disk.img"
    content = bytearray(rng.randbytes(4 << 20))
    image.write_bytes(content)
    wishes = Wishes(queues=2, ring_page_order=1)
    async with (
        our_backend(env, image) as nodes,
        device(nodes, wishes, timeout=PATIENCE) as disk,
    ):
        assert (len(disk.front.link.queues), disk.disk.max_segments) == (2, 256)
        assert bytes(await disk.pread(4 << 20, 0)) == content
        for start in (0, 1 << 20):
            content[start : start + (1 << 20)] = part = rng.randbytes(1 << 20)
            await disk.pwrite(part, start)
        content[2 << 20 : 3 << 20] = bytes(1 << 20)
        await disk.discard(2 << 20, 1 << 20)
        await disk.flush()
        assert image.read_bytes() == content
        with image.open("r+b") as file:
            file.truncate(5 << 20)
        await refresh(nodes.store, Endpoints(nodes.front, nodes.back), timeout=PATIENCE)
        async with asyncio.timeout(PATIENCE):
            while disk.size != 5 << 20:
                await asyncio.sleep(0.01)
        assert await disk.pread(1 << 20, 4 << 20) == bytes(1 << 20)


@acted
async def test_our_daemon_is_upgraded_under_it(env: FrameworkEnvironment, tmp_path: Path) -> None:
    """It parks: calls wait for the next one, and none fails."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    async with opened(env) as store:
        async with our_daemon(env, store) as service:
            nodes = await an_image(env, store, image)
            disk = await device(nodes, timeout=PATIENCE).__aenter__()
            await disk.pwrite(b"1" * 512, 0)
            assert await service.park(PATIENCE) == []
        call = asyncio.create_task(disk.pwrite(b"2" * 512, 512))
        await asyncio.sleep(0.1)
        assert not call.done()
        async with our_daemon(env, store):
            await call
            assert await disk.pread(1024, 0) == b"1" * 512 + b"2" * 512
            await disk.__aexit__(None, None, None)
        await nodes.close()


# ------------------------------------------------------------------ hostile backends


@asynccontextmanager
async def broken(
    env: FrameworkEnvironment, match: str, wishes: Wishes = SMALL
) -> AsyncIterator[tuple[ModelBackend, BlockDevice]]:
    """The backend breaks a rule in here, with a read outstanding: the read fails, so does
    every call after it, the device closes, and the error is told in XenStore."""
    async with connected(env, OFFERS, wishes) as (backend, disk):
        call = asyncio.create_task(disk.pread(512, 0))
        await backend.take()
        yield backend, disk
        await backend.until("6")
        for waiting in (call, disk.pread(512, 0), disk.flush()):
            with pytest.raises(PeerError, match=match):
                await waiting
        home = f"/local/domain/{env.front_domid}"
        path = f"{home}/error{backend.front.removeprefix(home)}"
        assert match in await backend.store.read(f"{path}/error")
        await backend.store.rm(path)


@pytest.mark.parametrize(
    ("match", "answer"),
    [
        ("not in flight", {"ident": 0}),
        ("not in flight", {"ident": 2**64 - 1}),
        ("answered as operation 1", {"operation": WRITE}),
        ("answered as operation 6", {"operation": INDIRECT}),
        ("answered as operation 255", {"operation": 255}),
        ("status 1", {"status": 1}),
        ("status -3", {"status": -3}),
        ("status -32768", {"status": -32768}),
    ],
)
@acted
async def test_f1_an_answer_that_makes_no_sense(
    env: FrameworkEnvironment, match: str, answer: Mapping[str, int]
) -> None:
    """F1."""
    async with broken(env, match) as (backend, _):
        backend.answer(backend.requests[0], **answer)


@acted
async def test_f1_an_answer_that_comes_twice(env: FrameworkEnvironment) -> None:
    """F1: the second finds nothing in flight, whatever else is."""
    async with broken(env, "not in flight") as (backend, disk):
        first = asyncio.create_task(disk.pread(512, 512))
        (request,) = await backend.take()
        backend.answer(request, backend.execute(request))
        assert await first == bytes(512)
        more = asyncio.create_task(disk.pread(512, 512))
        await backend.take()
        backend.answer(request)
        with pytest.raises(PeerError):
            await more


@acted
async def test_f1_an_answer_after_its_call_gave_up(env: FrameworkEnvironment) -> None:
    """F1, F3: late, and right all the same."""
    async with connected(env, answer_bound=0.1) as (backend, disk):
        buffer = bytearray(512)
        with pytest.raises(XenTimeoutError, match="does not answer"):
            await disk.preadv([buffer], 0)
        with pytest.raises(XenTimeoutError, match="does not answer"):
            await disk.flush()
        backend.disk[:] = b"l" * len(backend.disk)
        for request in await backend.take(2):
            backend.answer(request, backend.execute(request))
        async with backend.serving():
            assert await disk.pread(512, 512) == b"l" * 512
        assert buffer == bytes(512)


@pytest.mark.parametrize("jump", [2, 33, 2**31, 2**32 - 1])
@acted
async def test_f2_rsp_prod_jumps(env: FrameworkEnvironment, jump: int) -> None:
    """F2."""
    async with broken(env, "rsp_prod is out of bounds") as (backend, _):
        backend.scribble(RSP_PROD, jump)
        backend.notify()


@acted
async def test_f3_a_backend_that_never_answers_holds_up_nobody_s_close(
    env: FrameworkEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F3: what is in flight is failed, and its pages are left to the kernel."""
    monkeypatch.setattr("xenpy.frontend_life.CLOSE_BOUND", 0.2)
    async with a_backend(env) as backend:
        disk = device(backend)
        await asyncio.gather(backend.connect(), disk.__aenter__())
        call = asyncio.create_task(disk.pread(512, 0))
        (request,) = await backend.take()
        await disk.__aexit__(None, None, None)
        with pytest.raises(XenError) as caught:
            await call
        assert caught.value.errno == errno.ESHUTDOWN
        # It answers after all: to nobody.
        backend.answer(request, backend.execute(request) if request.operation != READ else OKAY)


@acted
async def test_f3_a_ring_full_of_silence_is_a_time_out(env: FrameworkEnvironment) -> None:
    """F3: not one call waits for ever, whether its request is in the ring or not."""
    async with connected(env, answer_bound=0.2) as (backend, disk):
        outcomes = await asyncio.gather(
            *(disk.pread(PAGE_SIZE, 0) for _ in range(100)), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {XenTimeoutError}
        for request in await backend.take(24):
            backend.answer(request, backend.execute(request))
        async with backend.serving():
            await disk.pread(PAGE_SIZE, 0)


@acted
async def test_f4_a_backend_that_flaps(env: FrameworkEnvironment) -> None:
    """F4: 200 states at once, of which none means anything; then it behaves."""
    rng = random.Random(4)
    async with connected(env, timeout=PATIENCE) as (backend, disk):
        backend.release()
        for _ in range(200):
            await backend.say(state=rng.randrange(1, 9))
        await backend.say(state=6)
        await asyncio.sleep(0.5)
        await backend.until("1", "6")
        await backend.say(state=2)
        await backend.connect()
        async with backend.serving():
            assert await disk.pread(512, 0) == bytes(512)


@pytest.mark.parametrize("state", ["0", "9", "-4", "", "four", "٤"])
@acted
async def test_f4_a_state_that_is_none(env: FrameworkEnvironment, state: str) -> None:
    """F4: as one that is gone."""
    async with connected(env) as (backend, disk):
        call = asyncio.create_task(disk.pread(512, 0))
        await backend.take()
        await backend.say(state=state)
        with pytest.raises(XenError) as caught:
            await call
        assert caught.value.errno == errno.ENODEV
        with pytest.raises(XenError) as caught:
            await disk.pread(512, 0)
        assert caught.value.errno == errno.ENODEV


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sectors", "-1"), ("sectors", str(2**63)), ("sectors", str(2**64)), ("sectors", "0x10"),
        ("sectors", ""), ("sectors", "007"), ("sector-size", "1024"), ("sector-size", "0"),
        ("info", "٤"),
    ],
)  # fmt: skip
@acted
async def test_f4_a_resize_that_makes_no_sense(
    env: FrameworkEnvironment, key: str, value: str
) -> None:
    """F4."""
    async with broken(env, key if value not in (str(2**63),) else "a disk of") as (backend, _):
        await backend.say(**{key: value, "state": 4})


@acted
async def test_f4_a_disk_that_shrinks_to_nothing(env: FrameworkEnvironment) -> None:
    """F4: `sectors` is 0."""
    async with connected(env) as (backend, disk):
        await backend.say(sectors=0, state=4)
        async with asyncio.timeout(PATIENCE):
            while disk.size:
                await asyncio.sleep(0.01)
        with pytest.raises(XenError, match="0 bytes"):
            await disk.pread(512, 0)


@acted
async def test_f4_features_that_change_later_change_nothing(env: FrameworkEnvironment) -> None:
    """F4."""
    async with connected(env) as (backend, disk), backend.serving():
        await backend.say(
            feature_max_indirect_segments=0, feature_flush_cache=0, max_ring_page_order=0,
            sectors=2048, state=4,
        )  # fmt: skip
        async with asyncio.timeout(PATIENCE):
            while disk.size != 2048 * 512:
                await asyncio.sleep(0.01)
        await disk.flush()
        await disk.pread(disk.size, 0)
        assert INDIRECT in {request.operation for request in backend.requests}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max-ring-page-order", "-1"), ("max-ring-page-order", "9" * 30),
        ("multi-queue-max-queues", "0"), ("multi-queue-max-queues", "two"),
        ("feature-flush-cache", "2"), ("feature-max-indirect-segments", "4294967296"),
        ("feature-persistent", "\udcff"), ("physical-sector-size", " 512"),
        ("sector-size", "256"), ("sector-size", "8192"),
    ],
)  # fmt: skip
@acted
async def test_f4_keys_that_make_no_sense(env: FrameworkEnvironment, key: str, value: str) -> None:
    """F4: the device is not connected, and the frontend closes it."""
    async with a_backend(env, {**OFFERS, key: value}) as backend:
        opening = asyncio.create_task(device(backend).__aenter__())
        connecting = asyncio.create_task(backend.connect())
        with pytest.raises(PeerError, match=key):
            await opening
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        assert await backend.store.read(f"{backend.front}/state") == "6"
        home = f"/local/domain/{env.front_domid}"
        await backend.store.rm(f"{home}/error{backend.front.removeprefix(home)}")


@acted
async def test_f4_more_keys_than_anybody_has(env: FrameworkEnvironment) -> None:
    """F4: the directory is not read to the end."""
    offers = {f"key-{number}": "x" for number in range(300)}
    async with a_backend(env, offers) as backend:
        with pytest.raises(PeerError, match="more than 256"):
            async with device(backend):
                raise AssertionError
        home = f"/local/domain/{env.front_domid}"
        await backend.store.rm(f"{home}/error{backend.front.removeprefix(home)}")


@acted
async def test_f5_pages_that_the_backend_keeps_are_not_used_again(
    env: FrameworkEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F5 (XSA-396): a backend keeps a data page and the ring mapped over the close, and over
    the next connection: it sees nothing of that one."""
    monkeypatch.setattr("xenpy.frontend_life.CLOSE_BOUND", 0.2)
    async with a_backend(env) as backend:
        disk = device(backend)
        await asyncio.gather(backend.connect(), disk.__aenter__())
        call = asyncio.create_task(disk.pwrite(b"s" * 512, 0))
        (request,) = await backend.take()
        ref = request.segments[0][0]
        with backend.grants.map(env.front_domid, [ref]) as kept:
            backend.answer(request)
            await call
            await disk.__aexit__(None, None, None)
            with kept.view(0, 512) as view:
                before = bytes(view)
            ring_refs = set(backend.pages[0].pages)
            other = ModelBackend(env, backend.store, devid=51728)
            await other.make()
            async with a_disk(other) as second, other.serving():
                await second.pwrite(b"t" * 512, 0)
                refs = {segment[0] for item in other.requests for segment in item.segments}
                assert ref not in refs
                assert not ring_refs & set(other.pages[0].pages)
                with kept.view(0, 512) as view:
                    assert bytes(view) == before == b"s" * 512
            await other.close()


@acted
async def test_f6_pages_hold_nothing_but_what_was_written(env: FrameworkEnvironment) -> None:
    """F6 (XSA-403): every page is whole, zeroed, and its rest stays zero."""
    async with connected(env) as (backend, disk):
        for index in range(4):
            call = asyncio.create_task(disk.pwrite(b"w" * 512, 0))
            (request,) = await backend.take()
            ((ref, first, last),) = request.segments
            assert (first, last) == (0, 0)
            with backend.grants.map(env.front_domid, [ref]) as page, page.view() as view:
                assert bytes(view) == (b"w" * 512).ljust(PAGE_SIZE, b"\0"), index
            backend.answer(request)
            await call
        with backend.pages[0].view(64 + 32 * 112) as rest:
            assert not any(rest)


@acted
async def test_f7_an_event_storm_is_bounded(env: FrameworkEnvironment) -> None:
    """F7 (XSA-391): notifications without answers, as fast as they go, for half a second."""
    async with connected(env) as (backend, disk):
        ports = disk.front.link.ports
        before = ports.wakes
        sent = 0
        loop = asyncio.get_running_loop()
        end = loop.time() + 0.5
        while loop.time() < end:
            backend.notify()
            sent += 1
            await asyncio.sleep(0)
        assert ports.wakes - before < 40, f"{sent} notifications"
        async with backend.serving():
            assert await disk.pread(512, 0) == bytes(512)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backend-id", "5"), ("backend-id", ""), ("backend", "/local/domain/0/backend/vbd/5/51712"),
        ("backend", "nonsense"),
    ],
)  # fmt: skip
@acted
async def test_f8_another_backend_under_way(
    env: FrameworkEnvironment, key: str, value: str
) -> None:
    """F8: its pages are the first one's; the device is over."""
    async with connected(env) as (backend, disk):
        before = await backend.store.read(f"{backend.front}/{key}")
        call = asyncio.create_task(disk.pread(512, 0))
        await backend.take()
        await backend.store.write(f"{backend.front}/{key}", value)
        with pytest.raises(XenError) as caught:
            await call
        assert caught.value.errno == errno.ENODEV
        await backend.store.write(f"{backend.front}/{key}", before)


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("front", "backend-id", "5"),
        ("front", "backend-id", "00"),
        ("front", "backend", "/local/domain/0/backend/vbd/7/51712"),
        ("front", "backend", "/local/domain/0/backend/vbd/07/51712"),
        ("front", "backend", "../../../0/backend/vbd/1/51712"),
        ("back", "frontend", "/local/domain/7/device/vbd/51712"),
        ("back", "frontend-id", "7"),
    ],
)
@acted
async def test_f8_halves_that_do_not_belong_together(
    env: FrameworkEnvironment, where: str, key: str, value: str
) -> None:
    """F8: nothing is granted to anybody."""
    async with a_backend(env) as backend:
        await backend.store.write(f"{getattr(backend, where)}/{key}", value)
        with pytest.raises(PeerError):
            async with device(backend):
                raise AssertionError
        assert await backend.store.read(f"{backend.front}/state") == "1"


@acted
async def test_f8_a_device_that_is_not_there(env: FrameworkEnvironment) -> None:
    async with opened(env) as store:
        for path in (f"/local/domain/{env.front_domid}/device/vbd/1", "/local/domain/40000/x", "x"):
            with pytest.raises((FileNotFoundError, PeerError)):
                async with BlockDevice(store, path, xen=Access(env)):
                    raise AssertionError
