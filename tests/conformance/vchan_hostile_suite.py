# SPDX-License-Identifier: MIT
"""vchan against a peer that keeps to nothing (XSA-86): for the fakes and for a real Xen.

Each ends with an error and nothing held, which `arenas` looks after.
"""

from __future__ import annotations

import asyncio
import errno
import time

import pytest

from conformance.block_front import PATIENCE
from conformance.vchan_arena import Arena, Arenas
from conformance.vchan_raw import RawClient, RawServer
from conformance.vchan_suite import SOON, both, on
from xenpy.drivers.vchan import VchanReader, VchanWriter
from xenpy.errors import PeerError, XenConnectionError, XenError, XenTimeoutError

BAD_ORDERS = [
    (9, 12), (12, 9), (21, 12), (12, 21), (10, 10), (11, 11), (20, 10), (10, 20), (0, 0),
    (65535, 65535), (10, 0), (32, 12), (12, 44),
]  # fmt: skip
NOWHERE = 0x7FFFFFFF
INSANE = [1, 2**31, 2**32 - 2049]
"""How far an index is beyond where it may be: the last is more than any ring behind."""


@pytest.mark.parametrize(("left", "right"), BAD_ORDERS)
def test_orders_out_of_range(arenas: Arenas, left: int, right: int) -> None:
    async def body(arena: Arena) -> None:
        async with RawServer(arena, left, right):
            with pytest.raises(PeerError, match="order"):
                await arena.connect()

    on(arenas, body)


@pytest.mark.parametrize(("order", "grants"), [(0, []), (12, [NOWHERE, NOWHERE])])
def test_keys_that_have_outlived_their_server(
    arenas: Arenas, order: int, grants: list[int]
) -> None:
    """The page is another's by now, or what it lists is: the next server is waited for."""

    async def body(arena: Arena) -> None:
        async with RawServer(arena, order, order, *grants) as server:
            server.set(srv_live=0)
            with pytest.raises(XenTimeoutError, match="the server has closed"):
                await arena.connect(timeout=SOON)

    on(arenas, body)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_list_of_grants_that_leads_nowhere(arenas: Arenas, place: int) -> None:
    """The first of left, the last of left, the only one of right."""

    async def body(arena: Arena) -> None:
        async with RawServer(arena, 13, 12) as server:
            with arena.server.xen.open_share() as share:
                refs = [int(ref) for ref in share.share(arena.client.domid, 3).refs]
                refs[place] = NOWHERE
                server.put(24, b"".join(ref.to_bytes(4, "little") for ref in refs))
                with pytest.raises(PeerError, match="leads nowhere"):
                    await arena.connect()

    on(arenas, body)


def test_a_list_of_grants_that_names_one_page_for_all(arenas: Arenas) -> None:
    """Even the first: the bytes are the peer's affair, and the indices are kept privately."""

    async def body(arena: Arena) -> None:
        async with RawServer(arena, 12, 12) as server:
            refs = 2 * int(server.ref).to_bytes(4, "little")
            server.put(24, refs)
            reader, writer = await arena.connect()
            server.set(right_prod=8)
            server.notify()
            assert len(await reader.readexactly(8)) == 8
            writer.write(b"\xff" * 4096)
            with pytest.raises(PeerError):
                await reader.read(1)
            with pytest.raises(PeerError):
                await writer.drain()
            with pytest.raises(PeerError):
                await writer.wait_closed()

    on(arenas, body)


@pytest.mark.parametrize("name", ["ring-ref", "event-channel"])
@pytest.mark.parametrize(
    "value", ["", "0", "-1", "x", "1 ", "4294967296", pytest.param("9" * 1000, id="9...")]
)
def test_keys_that_are_no_numbers(arenas: Arenas, name: str, value: str) -> None:
    async def body(arena: Arena) -> None:
        async with RawServer(arena) as server:
            await server.publish(**{name: value})
            with pytest.raises(PeerError, match=name) as caught:
                await arena.connect()
            assert len(str(caught.value)) < 200

    on(arenas, body)


@pytest.mark.parametrize("name", ["ring-ref", "event-channel"])
def test_keys_that_lead_nowhere(arenas: Arenas, name: str) -> None:
    async def body(arena: Arena) -> None:
        async with RawServer(arena) as server:
            await server.publish(**{name: 1000})
            with pytest.raises(XenTimeoutError, match="its server is gone"):
                await arena.connect(timeout=SOON)

    on(arenas, body)


@pytest.mark.parametrize("live", [2, 3, 255])
def test_a_server_s_live_byte_is_junk(arenas: Arenas, live: int) -> None:
    async def body(arena: Arena) -> None:
        async with RawServer(arena) as server:
            server.set(srv_live=live)
            with pytest.raises(PeerError, match=f"live byte is {live}"):
                await arena.connect()
        async with RawServer(arena) as server:
            reader, writer = await arena.connect()
            reading = asyncio.create_task(reader.read(1))
            await asyncio.sleep(0)
            server.set(srv_live=live)
            server.notify()
            await all_fail(reading, reader, writer)

    on(arenas, body)


def test_a_server_that_says_that_it_is_gone_is_tried_again(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        async with RawServer(arena) as server:
            server.set(srv_live=0)
            with pytest.raises(XenTimeoutError, match="closed"):
                await arena.connect(timeout=SOON)
            connecting = asyncio.create_task(arena.connect())
            await asyncio.sleep(0.05)
            server.set(srv_live=1)
            (await connecting)[1].close()

    on(arenas, body)


@pytest.mark.parametrize("live", [2, 3, 255])
def test_a_client_s_live_byte_is_junk(arenas: Arenas, live: int) -> None:
    """The server goes on with the next."""

    async def body(arena: Arena) -> None:
        async with arena.listen() as server:
            if live > 2:
                with await RawClient.of(arena) as client:
                    client.set(cli_live=live)
                    client.notify()
                    with pytest.raises(PeerError, match=f"live byte is {live}"):
                        await server.accept()
                retried = asyncio.create_task(server.accept())
                while not await arena.server.store.exists(f"{arena.where}/ring-ref"):
                    await asyncio.sleep(0.01)
            else:
                retried = asyncio.create_task(server.accept())
            with await RawClient.of(arena) as client:
                client.set(cli_live=1)
                client.notify()
                reader, writer = await retried
                reading = asyncio.create_task(reader.read(1))
                await asyncio.sleep(0)
                client.set(cli_live=live)
                client.notify()
                await all_fail(reading, reader, writer)
            (here, _), (_, back) = await both(arena, server.accept())
            back.write(b"honest")
            assert await here.read(6) == b"honest"
            back.close()

    on(arenas, body)


async def all_fail(reading: asyncio.Task[bytes], reader: VchanReader, writer: VchanWriter) -> None:
    """Whoever waits is told, and whoever asks later."""
    with pytest.raises(PeerError):
        await reading
    for step in (reader.read(1), reader.readexactly(1), writer.drain(), writer.send(b"x")):
        with pytest.raises(PeerError):
            await step
    writer.write(b"dropped")
    assert writer.is_closing()
    assert reader.at_eof()
    with pytest.raises(PeerError):
        await writer.wait_closed()


@pytest.mark.parametrize("beyond", INSANE)
@pytest.mark.parametrize("index", ["right.prod", "left.cons"])
def test_a_server_s_index_is_insane(arenas: Arenas, index: str, beyond: int) -> None:
    async def body(arena: Arena) -> None:
        async with RawServer(arena) as server:
            reader, writer = await arena.connect()
            if index == "right.prod":
                reading = asyncio.create_task(reader.read(10))
                await asyncio.sleep(0)
                server.set(right_prod=2048 + beyond)
                server.notify()
                await all_fail(reading, reader, writer)
            else:
                writer.write(b"x" * 1000)
                server.set(left_cons=1000 + beyond)
                writer.write(b"x")
                with pytest.raises(PeerError, match="cons"):
                    await writer.drain()

    on(arenas, body)


@pytest.mark.parametrize("beyond", INSANE)
@pytest.mark.parametrize("index", ["left.prod", "right.cons"])
def test_a_client_s_index_is_insane(arenas: Arenas, index: str, beyond: int) -> None:
    async def body(arena: Arena) -> None:
        async with arena.listen() as server:
            with await RawClient.of(arena) as client:
                client.set(cli_live=1)
                client.notify()
                reader, writer = await server.accept()
                if index == "left.prod":
                    reading = asyncio.create_task(reader.read(10))
                    await asyncio.sleep(0)
                    client.set(left_prod=1024 + beyond)
                    client.notify()
                    await all_fail(reading, reader, writer)
                else:
                    # Waiting for room.
                    writer.write(b"x" * 3000)
                    draining = asyncio.create_task(writer.drain())
                    await asyncio.sleep(0)
                    client.set(right_cons=2048 + beyond)
                    client.notify()
                    with pytest.raises(PeerError, match="cons"):
                        await draining

    on(arenas, body)


def test_what_is_ours_or_constant_is_not_read_back(arenas: Arenas) -> None:
    """Our indices and both orders lie where the peer may write."""

    async def body(arena: Arena) -> None:
        async with RawServer(arena) as server:
            reader, writer = await arena.connect()
            server.put(2048, b"abcdef")
            server.set(right_prod=6)
            assert await reader.readexactly(2) == b"ab"
            server.set(right_cons=999, left_prod=777, left_order=20, right_order=0)
            assert await reader.readexactly(4) == b"cdef"
            writer.write(b"12")
            assert (server.get("left.prod"), server.get("right.cons")) == (2, 6)
            writer.close()

    on(arenas, body)


def test_a_storm_of_notifications(arenas: Arenas) -> None:
    """It costs 20 wake-ups a second, and what is meant is heard all the same."""

    async def body(arena: Arena) -> None:
        async with RawServer(arena) as server:
            reader, writer = await arena.connect()
            wakes = reader._link.channel._ports
            reading = asyncio.create_task(reader.readexactly(3))
            begun, first = time.monotonic(), wakes.wakes
            while time.monotonic() < begun + 1:
                for _ in range(50):
                    server.notify()
                await asyncio.sleep(0)
            assert wakes.wakes - first < 50
            server.put(2048, b"yes")
            server.set(right_prod=3)
            server.notify()
            assert await reading == b"yes"
            writer.close()

    on(arenas, body)


@pytest.mark.parametrize("bit", [1, 2], ids=["reading", "writing"])
def test_a_notification_that_comes_late(arenas: Arenas, bit: int) -> None:
    """It is for what was found before without it, and takes with it the request to hear of what
    comes next: a peer that was held up between its write and its look at the byte."""

    async def body(arena: Arena) -> None:
        async with RawServer(arena) as server:
            reader, writer = await arena.connect()
            if bit == 1:
                waiting: asyncio.Task[object] = asyncio.create_task(reader.readexactly(1))
            else:
                waiting = asyncio.create_task(writer.send(bytes(1025)))
            async with asyncio.timeout(PATIENCE / 3):
                for _ in range(4):
                    while not server.get("srv_notify") & bit:
                        await asyncio.sleep(0.01)
                    server.set(srv_notify=0)
                    server.notify()
                while not server.get("srv_notify") & bit:
                    await asyncio.sleep(0.01)
            server.put(2048, b"x")
            server.set(right_prod=1, left_cons=1024)
            server.notify()
            assert await waiting == (b"x" if bit == 1 else None)
            writer.abort()

    on(arenas, body)


def test_a_client_that_dies(arenas: Arenas) -> None:
    """The kernel clears its live byte and notifies; what it has written is read first."""

    async def body(arena: Arena) -> None:
        async with arena.listen() as server:
            client = await RawClient.of(arena)
            client.set(cli_live=1)
            client.notify()
            reader, writer = await server.accept()
            writer.write(bytes(5000))
            draining = asyncio.create_task(writer.drain())
            reading = asyncio.create_task(reader.read())
            await asyncio.sleep(0)
            client.put(1024, b"last words")
            client.set(left_prod=10)
            client.die()
            assert await reading == b"last words"
            with pytest.raises(XenConnectionError) as caught:
                await draining
            assert caught.value.errno == errno.ECONNRESET
            writer.close()

    on(arenas, body)


def test_a_server_that_dies(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        async with RawServer(arena) as server:
            reader, writer = await arena.connect()
            reading = asyncio.create_task(reader.read())
            flushing = asyncio.create_task(writer.flush())
            await flushing
            writer.write(b"x")
            flushing = asyncio.create_task(writer.flush())
            await asyncio.sleep(0)
            server.put(2048, b"last words")
            server.set(right_prod=10)
            server.die()
            assert await reading == b"last words"
            with pytest.raises(XenConnectionError):
                await flushing
            writer.close()

    on(arenas, body)


def test_a_client_that_only_looks_in_costs_no_connection(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        async with arena.listen() as server:
            accepting = asyncio.create_task(server.accept())
            for _ in range(3):
                ref = await arena.server.store.read(f"{arena.where}/ring-ref")
                port = await arena.server.store.read(f"{arena.where}/event-channel")
                offer = server._offer
                RawClient(arena, int(ref), int(port)).die()
                while server._offer in (offer, None):
                    await asyncio.sleep(0.005)
                while not await arena.server.store.exists(f"{arena.where}/ring-ref"):
                    await asyncio.sleep(0.005)
            assert not accepting.done()
            (here, _), (_, back) = await both(arena, accepting)
            back.write(b"here")
            assert await here.read(4) == b"here"
            back.close()

    on(arenas, body)


def test_pages_that_gntalloc_does_not_give(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        with arena.server.xen.open_share() as share:
            share.share(arena.client.domid, arena.limit - 500)
            with pytest.raises(XenError, match=r"needs 513 pages.*parameters/limit") as caught:
                await arena.listen(1 << 20, 1 << 20).__aenter__()
            assert caught.value.errno == errno.ENOSPC
            async with arena.listen(1 << 20, 4096):
                pass

    on(arenas, body)
