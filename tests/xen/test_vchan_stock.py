# SPDX-License-Identifier: MIT
"""vchan with peers that nobody here wrote: vchan-socket-proxy, and libxenvchan itself."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from compiling import compile_c
from conformance.vchan_arena import Arena, loopback_arena
from conformance.vchan_peer_suite import *  # noqa: F403 - the tests themselves
from conformance.vchan_peer_suite import SOURCE, Stage
from conformance.vchan_suite import on
from conformance.xen_env import nothing_left_in_the_hypervisor
from xenpy.drivers.vchan import VchanReader, VchanWriter

__all__ = ["nothing_left_in_the_hypervisor"]

PIPE = subprocess.PIPE
LENGTH = 50_000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(SOURCE, tmp_path_factory.mktemp("vchan") / "vchan_peer", "-lxenvchan")


@pytest.fixture
def stage(program: Path) -> Stage:
    return Stage(loopback_arena, program)


@pytest.fixture(scope="module")
def proxy() -> str:
    """Debian has it beside the release's own tools."""
    (path,) = Path("/usr/lib").glob("xen-*/bin/vchan-socket-proxy")
    return str(path)


@asynccontextmanager
async def running(*words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program, killed in the end if it has not ended."""
    process = await asyncio.create_subprocess_exec(*words, stdin=PIPE, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def talk(
    process: asyncio.subprocess.Process, reader: VchanReader, writer: VchanWriter, seed: int
) -> None:
    """Many times what fits into the rings, both ways at the same time."""
    assert process.stdin is not None
    assert process.stdout is not None
    outwards, inwards = (random.Random(seed + n).randbytes(LENGTH) for n in (0, 1))
    process.stdin.write(outwards)
    sending = asyncio.create_task(writer.send(inwards))
    heard, told = await asyncio.gather(
        reader.readexactly(LENGTH), process.stdout.readexactly(LENGTH)
    )
    await sending
    assert heard == outwards
    assert told == inwards


def test_our_client_and_the_stock_server(proxy: str) -> None:
    async def body(arena: Arena) -> None:
        async with running(proxy, "--mode=server", "0", arena.where, "-") as process:
            reader, writer = await arena.connect()
            assert writer.get_extra_info("left") == 1024
            await talk(process, reader, writer, 1)
            writer.close()
            await writer.wait_closed()
            assert await process.wait() == 0

    on(loopback_arena, body)


def test_our_server_and_the_stock_client(proxy: str) -> None:
    async def body(arena: Arena) -> None:
        async with (
            arena.listen() as server,
            running(proxy, "--mode=client", "0", arena.where, "-") as process,
        ):
            reader, writer = await server.accept()
            await talk(process, reader, writer, 2)
            await writer.flush()
            writer.close()
            assert await process.wait() == 0

    on(loopback_arena, body)


def test_a_stock_server_keeps_its_channel_for_our_next_client(proxy: str, tmp_path: Path) -> None:
    """The same page and port, three times: `server_persist` of libxenvchan."""
    socket = str(tmp_path / "socket")

    async def body(arena: Arena) -> None:
        accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        local = await asyncio.start_unix_server(lambda *both: accepted.put(both), socket)
        async with local, running(proxy, "--mode=server", "0", arena.where, socket):
            keys = None
            for number in range(3):
                reader, writer = await arena.connect()
                there, back = await accepted.get()
                found = [
                    await arena.server.store.read(f"{arena.where}/{name}")
                    for name in ("ring-ref", "event-channel")
                ]
                assert keys in (None, found)
                keys = found
                writer.write(b"to %d" % number)
                assert await there.readexactly(4) == b"to %d" % number
                back.write(b"from %d" % number)
                assert await reader.readexactly(6) == b"from %d" % number
                writer.close()
                await writer.wait_closed()
                assert await there.read() == b""
                back.close()
        await arena.server.store.rm(arena.where)

    on(loopback_arena, body)


async def connected_to(socket: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection, once somebody listens there: the socket is bound before that."""
    while True:
        try:
            return await asyncio.open_unix_connection(str(socket))
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(0.01)


def test_a_stock_client_comes_again_to_our_server(proxy: str, tmp_path: Path) -> None:
    async def body(arena: Arena) -> None:
        socket = tmp_path / "socket"
        async with (
            running(proxy, "--mode=client", "0", arena.where, str(socket)),
            arena.listen() as server,
        ):
            for number in range(3):
                there, back = await connected_to(socket)
                reader, writer = await server.accept()
                back.write(b"to %d" % number)
                assert await reader.readexactly(4) == b"to %d" % number
                writer.write(b"from %d" % number)
                assert await there.readexactly(6) == b"from %d" % number
                writer.close()
                await writer.wait_closed()
                assert await there.read() == b""
                back.close()
                await back.wait_closed()

    on(loopback_arena, body)
