# SPDX-License-Identifier: MIT
"""A frontend of one's own protocol that keeps no rules: it costs its device and nothing else."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from conformance.own_suite import (
    REVERSE,
    SEVERAL,
    SLOW,
    WORK,
    Request,
    Response,
    Several,
    Work,
)
from xenpy import ring_server
from xenpy.backend import Device, DeviceContext, DeviceError
from xenpy.devlog import BoundedLog
from xenpy.errors import PeerError, XenError
from xenpy.gnttab import SharedPages
from xenpy.ring import FrontRing
from xenpy.ring_backend import KEPT, Backend, driver_of
from xenpy.ring_protocol import RingProtocol
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.testing.ring import pair
from xenpy.testing.world import World
from xenpy.types import DOM0, DevId, DomId
from xenpy.wire import CAbi, i16, u8, u64
from xenpy.xenstore import Store

GUEST = DomId(1)
REQ_PROD = 0


@pytest.fixture
def xen() -> Iterator[FakeXen]:
    xen = FakeXen()
    yield xen
    assert not any(xen.census().values()), xen.census()
    xen.close()


def context_of(xen: FakeXen, failures: list[Exception]) -> DeviceContext:
    return DeviceContext(
        kind="work", domid=GUEST, devid=DevId(0), path="/b", frontend_path="/f",
        backend_keys={}, options={}, xen=xen.domain(DOM0), on_failure=failures.append,
        log=BoundedLog(logging.getLogger("own"), "work/1/0"),
    )  # fmt: skip


@asynccontextmanager
async def device(xen: FakeXen, failures: list[Exception]) -> AsyncGenerator[Device]:
    made = driver_of(Work, WORK).backend(context_of(xen, failures))
    await made.prepare()
    try:
        yield made
    finally:
        await made.disconnect()
        await made.close()


@asynccontextmanager
async def world(xen: FakeXen) -> AsyncGenerator[World]:
    async with FakeXenstored() as fake, Store.open(fake.path) as store:
        fake.introduce(GUEST)
        halves = xen.domain(DOM0), xen.domain(GUEST)
        yield World(store, *halves, GUEST, lambda: xen.census()["mapped grants"])


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({}, PeerError),
        ({"ring-ref": "8"}, PeerError),
        ({"ring-ref": "-1", "event-channel": "1"}, PeerError),
        ({"ring-ref": "8", "event-channel": "0x1"}, PeerError),
        ({"ring-ref": "good", "event-channel": "1", "protocol": "sparc-abi"}, PeerError),
        ({"ring-ref": "4000000000", "event-channel": "1"}, XenError),
        ({"ring-ref": "good", "event-channel": "77"}, XenError),
    ],
    ids=str,
)
def test_r6_keys_that_make_no_sense(
    xen: FakeXen, keys: Mapping[str, str], error: type[Exception]
) -> None:
    async def main(good: str) -> None:
        async with device(xen, []) as made:
            with pytest.raises(error):
                await made.connect({k: good if v == "good" else v for k, v in keys.items()})

    with xen.domain(GUEST).open_share() as share:
        asyncio.run(main(str(share.share(DOM0, 1).refs[0])))


@pytest.mark.parametrize("ahead", [300, 2**31, 2**32 - 1])
def test_r1_an_index_out_of_bounds(xen: FakeXen, ahead: int) -> None:
    async def main(page: SharedPages, port: int) -> None:
        failures: list[Exception] = []
        async with device(xen, failures) as made:
            with page.view(REQ_PROD, 4) as index:
                index[:] = ahead.to_bytes(4, "little")
            await made.connect({"ring-ref": str(page.refs[0]), "event-channel": str(port)})
            for _ in range(20):
                await asyncio.sleep(0.01)
                if failures:
                    break
        (failure,) = failures
        assert isinstance(failure, PeerError)

    guest = xen.domain(GUEST)
    with guest.open_share() as share, guest.open_evtchn() as channels:
        asyncio.run(main(share.share(DOM0, 1), channels.bind_unbound(DOM0)))


@pytest.mark.parametrize("broken", [0, 1])
def test_r1_one_ring_of_two_breaks_the_rules(xen: FakeXen, broken: int) -> None:
    """The device is closed, and nothing of the other ring is held either."""

    async def main(pages: list[SharedPages], ports: list[int]) -> None:
        failures: list[Exception] = []
        made = driver_of(Several, SEVERAL).backend(context_of(xen, failures))
        await made.prepare()
        keys = {"multi-queue-num-queues": "2"}
        for queue, (page, port) in enumerate(zip(pages, ports, strict=True)):
            keys[f"queue-{queue}/ring-ref"] = str(page.refs[0])
            keys[f"queue-{queue}/event-channel"] = str(port)
        with pages[broken].view(REQ_PROD, 4) as index:
            index[:] = (300).to_bytes(4, "little")
        await made.connect(keys)
        await asyncio.sleep(0.05)
        await made.disconnect()
        await made.close()
        (failure,) = failures
        assert isinstance(failure, PeerError)

    guest = xen.domain(GUEST)
    with guest.open_share() as share, guest.open_evtchn() as channels:
        pages = [share.share(DOM0, 1) for _ in range(2)]
        asyncio.run(main(pages, [channels.bind_unbound(DOM0) for _ in range(2)]))


class Padded(NamedTuple):
    """i386 has no padding behind the byte."""

    operation: u8
    id: u64


class Answer(NamedTuple):
    status: i16
    id: u64


PADDED = RingProtocol("padded", Padded, Answer)


class Slow(Backend[Padded, Answer]):
    protocol = PADDED
    max_inflight = 4

    async def handle(self, request: Padded) -> Answer:
        await asyncio.sleep(0.01)
        return Answer(request.operation, request.id)


@pytest.mark.parametrize("abi", list(CAbi), ids=lambda abi: abi.name)
def test_both_abis_and_a_stop_under_load(xen: FakeXen, abi: CAbi) -> None:
    """What was taken is answered, and no more was taken than may be worked on."""

    async def main(page: SharedPages, port: int) -> None:
        codec = PADDED.codec(abi)
        ring = FrontRing(page, codec.layout)
        ring.put([codec.pack_request(Padded(100 + n, n)) for n in range(20)])
        made = driver_of(Slow, PADDED).backend(context_of(xen, []))
        keys = {"ring-ref": str(page.refs[0]), "event-channel": str(port)}
        await made.connect({**keys, "protocol": abi.protocol})
        await asyncio.sleep(0.005)
        await made.disconnect()
        answers = [codec.response(slot) for slot in ring.take()]
        assert sorted(answers) == [(100 + n, n) for n in range(Slow.max_inflight)]

    guest = xen.domain(GUEST)
    with guest.open_share() as share, guest.open_evtchn() as channels:
        asyncio.run(main(share.share(DOM0, 1), channels.bind_unbound(DOM0)))


def test_nothing_but_the_ring_stays_mapped(xen: FakeXen) -> None:
    async def main() -> None:
        async with world(xen) as here, pair(here, Work, WORK) as link:
            for ident in range(4):
                with link.grant() as page:
                    await link.request(Request(ident, page.ref, 5, REVERSE))
            assert xen.census()["mapped grants"] == 1

    asyncio.run(main())


def test_a_handler_that_keeps_a_page(xen: FakeXen) -> None:
    """Only its unmap waits."""
    kept: list[memoryview] = []

    class Keeper(Work):
        async def handle(self, request: Request) -> Response:
            with self.map(request.ref) as page:
                kept.append(page[:8])
            return Response(request.id, 0, 0)

    async def main(page: SharedPages, data: SharedPages, port: int) -> None:
        codec = WORK.codec()
        ring = FrontRing(page, codec.layout)
        ring.put([codec.pack_request(Request(7, data.refs[0], 0, 0))])
        context = context_of(xen, [])
        made = driver_of(Keeper, WORK).backend(context)
        await made.connect({"ring-ref": str(page.refs[0]), "event-channel": str(port)})
        await asyncio.sleep(0.01)
        await made.disconnect()
        assert [codec.response(slot).status for slot in ring.take()] == [0]
        assert bytes(kept.pop()) == bytes(8)
        # The page, and the handle that has it mapped.
        assert len(context.deferred) == 2
        assert context.deferred.retry() == 0

    guest = xen.domain(GUEST)
    with guest.open_share() as share, guest.open_evtchn() as channels:
        pages = share.share(DOM0, 1), share.share(DOM0, 1)
        asyncio.run(main(*pages, channels.bind_unbound(DOM0)))


def run_backend(
    xen: FakeXen, backend: type[Backend[Padded, Answer]]
) -> tuple[list[Answer], list[Exception]]:
    """Two requests to a backend, and a close.  Its answers, and what it failed with."""
    failures: list[Exception] = []

    async def main(page: SharedPages, port: int) -> list[Answer]:
        codec = PADDED.codec()
        ring = FrontRing(page, codec.layout)
        ring.put([codec.pack_request(Padded(n, n)) for n in (1, 2)])
        made = driver_of(backend, PADDED).backend(context_of(xen, failures))
        await made.connect({"ring-ref": str(page.refs[0]), "event-channel": str(port)})
        await asyncio.sleep(0.02)
        await made.disconnect()
        return sorted(codec.response(slot) for slot in ring.take())

    guest = xen.domain(GUEST)
    with guest.open_share() as share, guest.open_evtchn() as channels:
        return asyncio.run(main(share.share(DOM0, 1), channels.bind_unbound(DOM0))), failures


def test_a_handler_that_never_ends_does_not_hold_up_the_close(
    xen: FakeXen, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Waits(Slow):
        async def handle(self, request: Padded) -> Answer:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(ring_server, "STOP_BOUND", 0.05)
    answers, failures = run_backend(xen, Waits)
    assert answers == [(-errno.ECANCELED, 1), (-errno.ECANCELED, 2)]
    assert not failures


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_a_failure_that_cannot_be_said_closes_the_device(xen: FakeXen, seconds: float) -> None:
    """Nobody would ever answer the request, whether or not the device is being closed already:
    the next daemon must not take it over."""

    class Mute(Slow):
        def failed(self, request: Padded, error: Exception) -> Answer:
            raise ZeroDivisionError

        async def handle(self, request: Padded) -> Answer:
            await asyncio.sleep(seconds)
            raise OSError(errno.ENOSPC, "full")

    answers, failures = run_backend(xen, Mute)
    assert answers == []
    assert [type(error) for error in failures] == [ZeroDivisionError]


def test_a_hook_that_raises_leaves_nothing_held(xen: FakeXen) -> None:
    class Comes(Slow):
        async def connect(self) -> None:
            raise ZeroDivisionError

    class Goes(Slow):
        async def disconnect(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(DeviceError, match="ZeroDivisionError"):
        run_backend(xen, Comes)
    answers, failures = run_backend(xen, Goes)
    assert len(answers) == 2
    assert not failures


def test_slices_that_handlers_keep_are_bounded(xen: FakeXen) -> None:
    """One that lives until the handler returns costs one mapping, whatever a guest asks."""
    kept: list[memoryview] = []
    keep = False
    mapped: list[int] = []

    class Slices(Work):
        async def handle(self, request: Request) -> Response:
            with self.map(request.ref) as page:
                head = page[:8]
            if keep:
                kept.append(head)
            mapped.append(xen.census()["mapped grants"])
            return Response(request.id, 0, 0)

    async def main() -> None:
        nonlocal keep
        async with world(xen) as here, pair(here, Slices, WORK) as link:
            with link.grant() as page:
                for ident in range(50):
                    assert (await link.request(Request(ident, page.ref, 0, 0))).status == 0
                assert max(mapped) <= 3
                keep = True
                statuses = [
                    (await link.request(Request(ident, page.ref, 0, 0))).status
                    for ident in range(2 * KEPT)
                ]
            assert set(statuses) == {0, -errno.ENOMEM}
            assert max(mapped) <= KEPT + 3
            kept.clear()

    asyncio.run(main())


def test_a_page_stays_granted_while_a_forgotten_request_may_name_it(xen: FakeXen) -> None:
    async def main() -> None:
        async with world(xen) as here, pair(here, Work, WORK) as link:
            before = xen.census()["grants"]
            with link.grant() as page:
                asking = link.request(Request(1, page.ref, 0, SLOW))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asking, 0.001)
            assert xen.census()["grants"] == before + 1
            await link.request(Request(2, 0, 0, SLOW))
            assert xen.census()["grants"] == before

    asyncio.run(main())
