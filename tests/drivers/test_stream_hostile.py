# SPDX-License-Identifier: MIT
"""A frontend of bytes that keeps no rules: it costs its device and nothing else."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import struct
from collections.abc import Callable, Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.stream_suite import ECHO, Echo
from xenpy.backend import DeviceContext
from xenpy.byte_stream import ByteStream
from xenpy.devlog import BoundedLog
from xenpy.drivers.console.front import ConsoleFrontend
from xenpy.errors import PeerError, XenError
from xenpy.evtchn import EventChannels
from xenpy.flex_ring import FlexRing, pack_interface, parse_interface
from xenpy.frontend import FrontendContext
from xenpy.frontend_life import FrontendLife
from xenpy.memory import LocalMemory
from xenpy.stream_backend import stream_driver_of
from xenpy.stream_frontend import ByteFrontend, StreamFrontend
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DOM0, PAGE_SIZE, DevId, DomId, GrantRef, Port
from xenpy.xenstore import Store

GUEST = DomId(1)


@pytest.fixture
def xen() -> Iterator[FakeXen]:
    xen = FakeXen()
    yield xen
    assert not any(xen.census().values()), xen.census()
    xen.close()


@given(st.integers(), st.integers(0, 16) | st.integers(0, 2**32 - 1))
def test_a_page_of_anything(seed: int, order: int) -> None:
    noise = random.Random(seed).randbytes(PAGE_SIZE)
    page = noise[:128] + struct.pack("=I", order) + noise[132:]
    if 1 <= order <= 4:
        assert len(parse_interface(page, 4)) == 1 << order
    else:
        with pytest.raises(PeerError, match="ring_order"):
            parse_interface(page, 4)


@pytest.mark.parametrize("order", range(1, 10))
def test_what_one_end_packs_the_other_reads(order: int) -> None:
    refs = [GrantRef(8 + number) for number in range(1 << order)]
    packed = pack_interface(refs)
    assert len(packed) <= PAGE_SIZE
    assert parse_interface(packed.ljust(PAGE_SIZE, b"\0"), 9) == refs


@pytest.mark.parametrize(
    ("order", "keys", "error"),
    [
        (1, {"ring-ref": ""}, PeerError),
        (1, {"event-channel": ""}, PeerError),
        (1, {"ring-ref": "x"}, PeerError),
        (1, {"ring-ref": "77"}, XenError),
        (1, {"event-channel": "77"}, XenError),
        (0, {}, PeerError),
        (3, {}, PeerError),
        (2, {}, XenError),
    ],
)
def test_keys_and_pages_that_make_no_sense(
    xen: FakeXen, order: int, keys: Mapping[str, str], error: type[Exception]
) -> None:
    """A key of nothing is left out; the last page names others that nobody has granted."""

    async def main() -> None:
        guest = xen.domain(GUEST)
        device = stream_driver_of(Echo, ECHO).backend(context_of(xen))
        with (
            guest.open_share() as share,
            guest.open_evtchn() as channels,
            share.share(DOM0, 1) as page,
        ):
            with page.view() as view:
                view[128:140] = struct.pack("=III", order, 4000, 4001)
            port = channels.bind_unbound(DOM0)
            usual = {"ring-ref": str(page.refs[0]), "event-channel": str(port)}
            said = {name: text for name, text in {**usual, **keys}.items() if text}
            with pytest.raises(error):
                await device.connect(said)
        await device.disconnect()

    asyncio.run(main())


def context_of(xen: FakeXen) -> DeviceContext:
    return DeviceContext(
        kind="echo", domid=GUEST, devid=DevId(0), path="/b", frontend_path="/f", backend_keys={},
        options={}, xen=xen.domain(DOM0), on_failure=lambda error: None,
        log=BoundedLog(logging.getLogger("stream"), "echo/1/0"),
    )  # fmt: skip


@pytest.mark.parametrize("place", [68, 0], ids=["out_prod", "in_cons"])
def test_indices_that_are_out_of_bounds(place: int) -> None:
    """Whoever reads or writes is told, and the rings are not looked at any more."""

    async def main() -> None:
        with LocalMemory(PAGE_SIZE) as interface, LocalMemory(2 * PAGE_SIZE) as data:
            stream = ByteStream(*FlexRing.backend(interface, data), lambda: None)
            with interface.view() as view:
                view[place : place + 4] = struct.pack("=I", 5000)
            action = stream.read() if place == 68 else stream.write(b"x")
            with pytest.raises(PeerError, match="out of bounds"):
                await action
            with pytest.raises(PeerError, match="out of bounds"):
                await stream.read()
            assert stream.service() == 0

    asyncio.run(main())


def test_the_other_end_is_told_of_each_change() -> None:
    async def main() -> None:
        told: list[str] = []
        with LocalMemory(PAGE_SIZE) as interface, LocalMemory(2 * PAGE_SIZE) as data:
            front = ByteStream(*FlexRing.frontend(interface, data), lambda: told.append("front"))
            back = ByteStream(*FlexRing.backend(interface, data), lambda: told.append("back"))
            await front.write(b"x")
            assert await back.read() == b"x"
            assert told == ["front", "back"]

    asyncio.run(main())


def test_a_record_that_is_too_long_or_cut_short() -> None:
    async def main(content: bytes, reason: str) -> None:
        with LocalMemory(PAGE_SIZE) as interface, LocalMemory(2 * PAGE_SIZE) as data:
            front = ByteStream(*FlexRing.frontend(interface, data), lambda: None)
            back = ByteStream(*FlexRing.backend(interface, data), lambda: None)
            await front.write(content)
            back.end()
            with pytest.raises(PeerError, match=reason):
                await back.read_record(limit=100)

    asyncio.run(main(struct.pack("<I", 101), "101 bytes"))
    asyncio.run(main(struct.pack("<I", 10) + b"short", "within a record"))
    asyncio.run(main(b"\x01\0", "within a record"))


@pytest.mark.parametrize(
    "make",
    [lambda context: StreamFrontend(context, ECHO, {}), ConsoleFrontend],
    ids=["stream", "console"],
)
def test_a_frontend_without_a_port_says_so(
    xen: FakeXen,
    make: Callable[[FrontendContext], ByteFrontend],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the error, in XenStore, and without a word about rings that have gone."""

    def refuse(self: EventChannels, domid: DomId) -> Port:
        raise XenError(errno.ENOSPC, "bind_unbound", domid=domid)

    monkeypatch.setattr(EventChannels, "bind_unbound", refuse)
    front, back = "/local/domain/1/device/echo/0", "/local/domain/0/backend/echo/1/0"

    async def main() -> None:
        async with FakeXenstored() as fake, Store.open(fake.path, timeout=5) as store:
            for path, keys in (
                (front, {"backend": back, "backend-id": "0", "state": "1"}),
                (back, {"frontend": front, "frontend-id": "1", "max-ring-page-order": "4"}),
            ):
                fake.write(path, "")
                for key, value in keys.items():
                    fake.write(f"{path}/{key}", value)
            fake.write(f"{back}/state", "2")
            with pytest.raises(XenError) as caught:
                async with FrontendLife(store, front, make, xen=xen.domain(GUEST)):
                    raise AssertionError
            assert caught.value.errno == errno.ENOSPC
            assert fake.read(f"{front}/state") == "6"
            assert "bind_unbound" in fake.read("/local/domain/1/error/device/echo/0/error")

    asyncio.run(main())
