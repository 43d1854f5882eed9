# SPDX-License-Identifier: MIT
"""vchan, both halves ours: one suite for the fakes and for a real Xen.

A module that runs it imports every name and defines a fixture `arenas`: a
`conformance.vchan_arena.Arenas`.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable, Coroutine

import pytest

from conformance.block_front import PATIENCE
from conformance.vchan_arena import Arena, Arenas
from xenpy.drivers.vchan import VchanReader, VchanWriter
from xenpy.errors import XenConnectionError, XenTimeoutError

Pair = tuple[VchanReader, VchanWriter]
ORDERS = [(10, 11), (11, 10), *((order, order) for order in range(12, 21))]
SOON = 2.0
"""Seconds until a connection that cannot be made is given up: tried at least once by then, on a
machine that is emulated and busy."""
MIXED = [(11, 20), (20, 11), (12, 17), (20, 12)]


def on(arenas: Arenas, body: Callable[[Arena], Coroutine[object, object, None]]) -> None:
    """Run it, and hold it to an end."""

    async def main() -> None:
        async with asyncio.timeout(4 * PATIENCE), arenas() as arena:
            await body(arena)

    asyncio.run(main())


async def both(arena: Arena, server_side: Awaitable[Pair]) -> tuple[Pair, Pair]:
    """The server's streams and the client's."""
    served, connected = await asyncio.gather(server_side, arena.connect())
    return served, connected


def pattern(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


async def pump(writer: VchanWriter, content: bytes, seed: int) -> None:
    """Write in pieces of any size, by each of the ways there are."""
    dice = random.Random(seed)
    view, place = memoryview(content), 0
    while place < len(view):
        length = min(dice.choice([1, 2, 3, 511, 4096, 65536, 300000]), len(view) - place)
        piece, place = view[place : place + length], place + length
        if dice.random() < 0.5:
            writer.write(piece)
            await writer.drain()
        else:
            await writer.send(piece)


async def swallow(reader: VchanReader, length: int, seed: int) -> bytes:
    dice = random.Random(seed)
    got = bytearray()
    buffer = bytearray(100000)
    while len(got) < length:
        way = dice.randrange(3)
        limit = min(dice.choice([1, 2, 700, 4096, 65536, 300000]), length - len(got))
        if way == 0:
            got += await reader.read(limit)
        elif way == 1:
            got += await reader.readexactly(limit)
        else:
            view = memoryview(buffer)[: min(limit, len(buffer))]
            got += view[: await reader.readinto(view)]
    return bytes(got)


@pytest.mark.parametrize(("left", "right"), [*ORDERS, *MIXED])
def test_bytes_go_both_ways_round_and_round(arenas: Arenas, left: int, right: int) -> None:
    """Twice each ring and more, at the same time."""

    async def body(arena: Arena) -> None:
        sizes = {"left": 1 << left, "right": 1 << right}
        async with arena.listen(**sizes) as server:
            (here, out), (there, back) = await both(arena, server.accept())
            assert [back.get_extra_info(name) for name in sizes] == list(sizes.values())
            to_server = pattern(2 * sizes["left"] + 777, 1)
            to_client = pattern(2 * sizes["right"] + 777, 2)
            async with asyncio.TaskGroup() as group:
                group.create_task(pump(back, to_server, 3))
                group.create_task(pump(out, to_client, 4))
                one = group.create_task(swallow(here, len(to_server), 5))
                other = group.create_task(swallow(there, len(to_client), 6))
            assert one.result() == to_server
            assert other.result() == to_client
            back.close()
            await back.wait_closed()

    on(arenas, body)


def test_lines_and_the_end(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        async with arena.listen() as server:
            (here, out), (there, back) = await both(arena, server.accept())
            back.writelines([b"one\ntw", b"o\n", b"thr"])
            assert await here.readline() == b"one\n"
            assert await here.readuntil(b"o") == b"two"
            assert not here.at_eof()
            back.write(b"ee")
            back.close()
            await back.wait_closed()
            assert back.is_closing()
            assert [line async for line in here] == [b"\n", b"three"]
            assert here.at_eof()
            assert await here.read() == b""
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await here.readexactly(1)
            assert caught.value.partial == b""
            out.write(b"to nobody")
            with pytest.raises(XenConnectionError) as gone:
                await out.drain()
            assert gone.value.errno == errno.ECONNRESET
            out.close()
            await out.wait_closed()
            assert await there.read() == b""

    on(arenas, body)


def test_a_line_too_long_is_dropped_and_the_next_is_there(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        async with arena.listen(left=1 << 17) as server:
            (here, _), (_, back) = await both(arena, server.accept())
            back.write(b"x" * 70000 + b"\nshort\n")
            with pytest.raises(asyncio.LimitOverrunError):
                await here.readuntil(b"\n")
            with pytest.raises(ValueError, match="65536"):
                await here.readline()
            assert await here.readline() == b"x" * (70000 - 65536) + b"\n"
            assert await here.readline() == b"short\n"
            back.close()

    on(arenas, body)


def test_more_than_a_ring_is_read_exactly_and_all_to_the_end(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        content = pattern(9000, 1)
        async with arena.listen() as server:
            (here, _), (_, back) = await both(arena, server.accept())
            writing = asyncio.create_task(back.send(content))
            assert await here.readexactly(5000) == content[:5000]
            rest = asyncio.create_task(here.read())
            await writing
            back.close()
            assert await rest == content[5000:]

    on(arenas, body)


def test_any_buffer_is_bytes(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        content = pattern(4096, 1)
        words = memoryview(bytearray(content)).cast("I")
        into = memoryview(bytearray(4096)).cast("Q")
        async with arena.listen() as server:
            (here, _), (_, back) = await both(arena, server.accept())
            sending = asyncio.create_task(back.send(words))
            assert await here.readexactly(4096) == content
            await sending
            back.write(words[:100])
            assert await here.readinto(into) == 400
            assert into.cast("B")[:400] == content[:400]
            back.write(b"ahead")
            reading = asyncio.create_task(here.readexactly(9))
            await back.flush()
            reading.cancel()
            await asyncio.wait([reading])
            assert await here.readinto(into) == 5
            assert into.cast("B")[:5] == b"ahead"
            assert await here.readinto(bytearray()) == 0
            await back.send(b"")
            back.close()

    on(arenas, body)


def test_what_is_read_exactly_survives_a_caller_who_gives_up(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        async with arena.listen() as server:
            (here, _), (_, back) = await both(arena, server.accept())
            back.write(b"123")
            reading = asyncio.create_task(here.readexactly(4))
            await back.flush()
            with pytest.raises(RuntimeError, match="another coroutine"):
                await here.readexactly(9)
            reading.cancel()
            await asyncio.wait([reading])
            back.write(b"45")
            assert await here.readexactly(4) == b"1234"
            assert await here.read(10) == b"5"
            back.close()

    on(arenas, body)


def test_a_writer_waits_for_room_and_keeps_what_does_not_fit(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        async with arena.listen(left=1024) as server:
            (here, _), (_, back) = await both(arena, server.accept())
            back.write(b"a" * 1000)
            await back.drain()
            back.write(b"b" * 1000)
            draining = asyncio.create_task(back.drain())
            sending = asyncio.create_task(back.send(b"c" * 1000))
            await asyncio.sleep(0.05)
            assert not draining.done()
            assert not sending.done()
            assert await here.readexactly(3000) == b"a" * 1000 + b"b" * 1000 + b"c" * 1000
            await asyncio.gather(draining, sending)
            back.close()

    on(arenas, body)


def test_what_was_written_is_there_after_a_close(arenas: Arenas) -> None:
    """In the ring, and beyond it."""

    async def body(arena: Arena) -> None:
        content = pattern(5000, 1)
        for serving in (True, False):
            async with arena.listen(1024, 1024) as server:
                (here, out), (there, back) = await both(arena, server.accept())
                writer, reader = (out, there) if serving else (back, here)
                writer.write(content)
                writer.close()
                writer.write(b"dropped")
                assert await reader.read() == content
                await writer.wait_closed()
                back.close()
                await back.wait_closed()

    on(arenas, body)


def test_a_flush_waits_until_it_was_read(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        async with arena.listen() as server:
            (here, _), (_, back) = await both(arena, server.accept())
            back.write(b"x")
            flushing = asyncio.create_task(back.flush())
            await asyncio.sleep(0.05)
            assert not flushing.done()
            assert await here.read(1) == b"x"
            await flushing
            back.close()

    on(arenas, body)


def test_an_abort_drops_what_has_no_room(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        async with arena.listen(left=1024) as server:
            (here, _), (_, back) = await both(arena, server.accept())
            back.write(b"x" * 9000)
            waiting = asyncio.create_task(back.drain())
            await asyncio.sleep(0)
            back.abort()
            with pytest.raises(XenConnectionError) as caught:
                await waiting
            assert caught.value.errno == errno.EPIPE
            assert len(await here.read()) == 1024

    on(arenas, body)


def test_clients_come_one_after_the_other(arenas: Arenas) -> None:
    """Each finds fresh rings, whichever side closes first."""

    async def body(arena: Arena) -> None:
        async with arena.listen() as server:
            for number in range(6):
                (here, out), (there, back) = await both(arena, server.accept())
                out.write(b"left behind")
                back.write(b"%d" % number)
                assert await here.read(10) == b"%d" % number
                first, second = (out, back) if number % 2 else (back, out)
                first.close()
                await first.wait_closed()
                assert await (there if number % 2 else here).read(20) in (b"left behind", b"")
                second.close()
                await second.wait_closed()

    on(arenas, body)


def test_a_client_waits_for_its_turn(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        async with arena.listen() as server:
            (_, out), (_, back) = await both(arena, server.accept())
            with pytest.raises(XenTimeoutError, match="has another client"):
                await arena.connect(timeout=SOON)
            waiting = asyncio.create_task(arena.connect())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            back.close()
            out.close()
            here, _ = await server.accept()
            _, again = await waiting
            again.write(b"mine")
            assert await here.read(4) == b"mine"
            again.close()

    on(arenas, body)


def test_a_client_waits_for_a_server_but_not_for_ever(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        with pytest.raises(XenTimeoutError, match="no server has published it") as caught:
            await arena.connect(timeout=SOON)
        assert arena.where in str(caught.value)
        waiting = asyncio.create_task(arena.connect())
        await asyncio.sleep(0.05)
        async with arena.listen() as server:
            await server.accept()
            _, back = await waiting
            back.close()
            await back.wait_closed()

    on(arenas, body)


def test_keys_of_a_server_that_is_gone_are_passed_over(arenas: Arenas) -> None:
    """A server that was killed leaves them; the next one writes others."""

    async def body(arena: Arena) -> None:
        store = arena.server.store
        async with arena.listen():
            names = ["ring-ref", "event-channel"]
            stale = {name: await store.read(f"{arena.where}/{name}") for name in names}
        for name, value in stale.items():
            await store.write(f"{arena.where}/{name}", value)
            await store.set_perms(
                f"{arena.where}/{name}", f"n{arena.server.domid},r{arena.client.domid}"
            )
        with pytest.raises(XenTimeoutError, match="its server is gone"):
            await arena.connect(timeout=SOON)
        waiting = asyncio.create_task(arena.connect())
        await asyncio.sleep(0.05)
        async with arena.listen() as server:
            await server.accept()
            (await waiting)[1].close()

    on(arenas, body)


def test_the_keys_are_the_client_s_to_read_and_go_with_the_server(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        store = arena.server.store
        async with arena.listen():
            for name in ("ring-ref", "event-channel"):
                perms = await store.get_perms(f"{arena.where}/{name}")
                assert str(perms) == f"n{arena.server.domid},r{arena.client.domid}"
            await store.write(f"{arena.where}/somebody-else-s", "x")
        assert await store.list(arena.where) == ["somebody-else-s"]
        await store.rm(arena.where)
        async with arena.listen() as first, arena.listen() as second:
            assert await store.read(f"{arena.where}/ring-ref") != ""
            await first.__aexit__(None, None, None)
            assert await store.exists(f"{arena.where}/ring-ref"), "they are the second's"
            assert repr(second).endswith("offered>")

    on(arenas, body)


def test_leaving_the_server_closes_the_connection(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        async with arena.listen() as server:
            (here, out), (there, back) = await both(arena, server.accept())
            out.write(b"last")
        assert await there.read() == b"last"
        assert await here.read() == b""
        assert out.is_closing()
        back.close()

    on(arenas, body)


def test_cancelled_in_every_state_nothing_is_held(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        connecting = asyncio.create_task(arena.connect())
        await asyncio.sleep(0.02)
        connecting.cancel()
        await asyncio.wait([connecting])
        async with arena.listen() as server:
            accepting = asyncio.create_task(server.accept())
            await asyncio.sleep(0.02)
            accepting.cancel()
            await asyncio.wait([accepting])
            (here, _), (_, back) = await both(arena, server.accept())
            tasks = [
                asyncio.create_task(step)
                for step in (here.read(1), here.readinto(bytearray(1)), back.send(bytes(9999)))
            ]
            await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            back.abort()

    on(arenas, body)


def test_others_have_their_turn_while_much_is_moved(arenas: Arenas) -> None:
    """A coroutine that never has to wait yields all the same."""

    async def body(arena: Arena) -> None:
        async with arena.listen(left=1 << 20) as server:
            (here, _), (_, back) = await both(arena, server.accept())
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            counting = asyncio.create_task(count())
            await asyncio.sleep(0)
            begun = turns
            for _ in range(16):
                back.write(bytes(64 << 10))
                await back.drain()
            assert turns > begun
            begun = turns
            for _ in range(16):
                await here.readexactly(64 << 10)
            assert turns > begun
            counting.cancel()
            back.close()

    on(arenas, body)
