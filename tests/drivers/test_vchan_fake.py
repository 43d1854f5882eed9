# SPDX-License-Identifier: MIT
"""The suites of vchan over the fakes, and what only they can show."""

from __future__ import annotations

import asyncio

import pytest

from conformance.vchan_arena import GUEST, Arena, Arenas, fake_arena
from conformance.vchan_hostile_suite import *  # noqa: F403 - the tests themselves
from conformance.vchan_suite import *  # noqa: F403
from conformance.vchan_suite import both, on
from xenpy.errors import XenConnectionError, XenTimeoutError
from xenpy.types import DOM0, DomId


@pytest.fixture
def arenas() -> Arenas:
    return fake_arena


@pytest.mark.parametrize(("server", "client"), [(1, 0), (1, 2)])
def test_a_guest_serves(server: int, client: int) -> None:
    """Domain 0, and another guest: neither may read what is not for it."""

    async def body(arena: Arena) -> None:
        connecting = asyncio.create_task(arena.connect())
        await asyncio.sleep(0.02)
        async with arena.listen() as serving:
            (here, _), (_, back) = await asyncio.gather(serving.accept(), connecting)
            back.write(b"hello")
            assert await here.read(5) == b"hello"
            back.close()
            await back.wait_closed()

    on(lambda: fake_arena(DomId(server), DomId(client)), body)


def test_a_channel_for_another_domain() -> None:
    async def body(arena: Arena) -> None:
        async with arena.listen():
            for name in ("ring-ref", "event-channel"):
                await arena.server.store.set_perms(f"{arena.where}/{name}", "n0,r7")
            with pytest.raises(XenTimeoutError, match="no server has published it for this domain"):
                await arena.connect(timeout=0.1)

    on(fake_arena, body)


def test_a_destroyed_client_is_seen_though_nobody_notifies(arenas: Arenas) -> None:
    async def body(arena: Arena) -> None:
        assert arena.destroy is not None
        async with arena.listen() as server:
            (here, out), (_, back) = await both(arena, server.accept())
            out.write(bytes(5000))
            draining = asyncio.create_task(out.drain())
            await asyncio.sleep(0)
            back.write(b"last")
            arena.destroy(GUEST)
            assert await here.read() == b"last"
            with pytest.raises(XenConnectionError):
                await draining
            back.abort()

    on(arenas, body)


def test_a_destroyed_server_is_seen_though_nobody_notifies() -> None:
    async def body(arena: Arena) -> None:
        assert arena.destroy is not None
        async with arena.listen() as server:
            (_, out), (there, back) = await both(arena, server.accept())
            out.write(b"last")
            arena.destroy(GUEST)
            assert await there.read() == b"last"
            back.close()

    on(lambda: fake_arena(GUEST, DOM0), body)


def test_a_guest_that_cannot_see_domains_die_connects_all_the_same(arenas: Arenas) -> None:
    """xenstored refuses to tell it, or tells it nothing."""

    async def body(arena: Arena) -> None:
        assert arena.destroy is not None
        async with arena.listen() as server:
            (here, out), (there, back) = await both(arena, server.accept())
            await asyncio.sleep(0.02)
            out.write(b"here")
            assert await there.read(4) == b"here"
            back.close()
            assert await here.read() == b""

    on(arenas, body)
