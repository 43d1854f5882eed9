# SPDX-License-Identifier: MIT
"""vchan with peers that nobody here wrote: vchan-socket-proxy, and libxenvchan itself."""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from compiling import compile_c
from conformance.vchan_arena import Arena, loopback_arena
from conformance.vchan_suite import on
from conformance.xen_env import nothing_left_in_the_hypervisor
from xenpy.drivers.vchan import VchanReader, VchanWriter

__all__ = ["nothing_left_in_the_hypervisor"]

PIPE = subprocess.PIPE
LENGTH = 50_000
PERIOD = bytes(range(251))
SIZES = [(0, 0), (2048, 1024), (2048, 1 << 16), (1 << 17, 2048), (4096, 4096), (1 << 20, 1 << 20)]
ORDERS = [12, 13, 14, 15, 16, 17, 18, 19]


def pattern(length: int) -> bytes:
    return bytes(itertools.islice(itertools.cycle(PERIOD), length))


@pytest.fixture(scope="module")
def proxy() -> str:
    """Debian has it beside the release's own tools."""
    (path,) = Path("/usr/lib").glob("xen-*/bin/vchan-socket-proxy")
    return str(path)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> str:
    source = Path(__file__).with_name("vchan_peer.c")
    program = tmp_path_factory.mktemp("vchan") / "vchan_peer"
    return str(compile_c(source, program, "-lxenvchan"))


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


def test_a_stock_client_comes_again_to_our_server(proxy: str, tmp_path: Path) -> None:
    async def body(arena: Arena) -> None:
        socket = tmp_path / "socket"
        async with (
            running(proxy, "--mode=client", "0", arena.where, str(socket)),
            arena.listen() as server,
        ):
            while not socket.exists():
                await asyncio.sleep(0.01)
            for number in range(3):
                there, back = await asyncio.open_unix_connection(str(socket))
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


@pytest.mark.parametrize(
    "sizes", [*SIZES, *((1 << order, 1 << order) for order in ORDERS)], ids=str
)
def test_libxenvchan_serves(peer: str, sizes: tuple[int, int]) -> None:
    """It is an echo of what we send, several times each ring."""

    async def body(arena: Arena) -> None:
        words = [peer, "server", *map(str, sizes), "0", arena.where, "echo", "30000"]
        async with running(*words) as process:
            reader, writer = await arena.connect()
            assert writer.get_extra_info("left") == max(1024, sizes[0])
            await there_and_back(reader, writer, 2 * max(sizes) + 12345)
            writer.close()
            await writer.wait_closed()
            assert await process.wait() == 0

    on(loopback_arena, body)


@pytest.mark.parametrize(
    "sizes", [*SIZES, *((1 << order, 1 << order) for order in ORDERS)], ids=str
)
def test_libxenvchan_connects(peer: str, sizes: tuple[int, int]) -> None:
    async def body(arena: Arena) -> None:
        async with (
            arena.listen(*sizes) as server,
            running(peer, "client", "0", arena.where, "echo", "30000") as process,
        ):
            reader, writer = await server.accept()
            await there_and_back(reader, writer, 2 * max(sizes) + 12345)
            writer.close()
            await writer.wait_closed()
            assert await process.wait() == 0

    on(loopback_arena, body)


async def there_and_back(reader: VchanReader, writer: VchanWriter, length: int) -> None:
    content = pattern(length)
    sending = asyncio.create_task(writer.send(content))
    assert await reader.readexactly(length) == content
    await sending


@pytest.mark.parametrize("chunk", [1, 1000, 65536])
def test_a_stream_from_and_to_libxenvchan(peer: str, chunk: int) -> None:
    """One direction only, as fast as it goes, in pieces of any size."""
    length = 300 * chunk + 99

    async def body(arena: Arena) -> None:
        async with arena.listen(1 << 16, 1 << 16) as server:
            words = [peer, "client", "0", arena.where]
            async with running(*words, "source", str(length), str(chunk)) as process:
                reader, writer = await server.accept()
                assert await reader.readexactly(length) == pattern(length)
                writer.close()
                await writer.wait_closed()
                assert await process.wait() == 0
            accepting = asyncio.create_task(server.accept())
            while not await arena.server.store.exists(f"{arena.where}/ring-ref"):
                await asyncio.sleep(0.01)
            async with running(*words, "sink", str(chunk)) as process:
                _, writer = await accepting
                content = memoryview(pattern(length))
                for start in range(0, length, chunk):
                    await writer.send(content[start : start + chunk])
                writer.close()
                said, _ = await process.communicate()
                assert said.decode() == f"{length} bytes, 0 wrong\n"

    on(loopback_arena, body)
