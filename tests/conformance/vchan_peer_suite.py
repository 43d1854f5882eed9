# SPDX-License-Identifier: MIT
"""vchan with libxenvchan itself, by vchan_peer.c: for the fakes and for a real Xen.

A module that runs it imports every name and defines a fixture `stage`: a `Stage`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conformance.vchan_arena import Arena, Arenas
from conformance.vchan_suite import on
from xenpy.drivers.vchan import VchanReader, VchanWriter
from xenpy.types import DomId

SOURCE = Path(__file__).with_name("vchan_peer.c")
PIPE = subprocess.PIPE
PERIOD = bytes(range(251))
SIZES = [(0, 0), (2048, 1024), (2048, 1 << 16), (1 << 17, 2048), (4096, 4096), (1 << 20, 1 << 20)]
ORDERS = [12, 13, 14, 15, 16, 17, 18, 19]

sizes = pytest.mark.parametrize(
    ("left", "right"), [*SIZES, *((1 << order, 1 << order) for order in ORDERS)]
)


@dataclass(slots=True)
class Stage:
    """An arena, and programs in its domains.

    Attributes:
        program: vchan_peer.c, compiled.
        environments: more variables of a program in a domain.
        fds: descriptors that it inherits.
    """

    arenas: Arenas
    program: Path
    environments: Mapping[DomId, Mapping[str, str]] = field(
        default_factory=dict[DomId, Mapping[str, str]]
    )
    fds: tuple[int, ...] = ()

    @asynccontextmanager
    async def running(
        self, domid: DomId, *words: object
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """The program in that domain, killed in the end if it has not ended."""
        process = await asyncio.create_subprocess_exec(
            self.program, *map(str, words), stdin=PIPE, stdout=PIPE, pass_fds=self.fds,
            env={**os.environ, **self.environments.get(domid, {})},
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


def pattern(length: int) -> bytes:
    return bytes(itertools.islice(itertools.cycle(PERIOD), length))


async def there_and_back(reader: VchanReader, writer: VchanWriter, length: int) -> None:
    content = pattern(length)
    sending = asyncio.create_task(writer.send(content))
    assert await reader.readexactly(length) == content
    await sending


@sizes
def test_libxenvchan_serves(stage: Stage, left: int, right: int) -> None:
    """It is an echo of what we send, several times each ring."""

    async def body(arena: Arena) -> None:
        words = "server", left, right, arena.client.domid, arena.where, "echo", 30000
        async with stage.running(arena.server.domid, *words) as process:
            reader, writer = await arena.connect()
            assert writer.get_extra_info("left") == max(1024, left)
            await there_and_back(reader, writer, 2 * max(left, right) + 12345)
            writer.close()
            await writer.wait_closed()
            assert await process.wait() == 0

    on(stage.arenas, body)


@sizes
def test_libxenvchan_connects(stage: Stage, left: int, right: int) -> None:
    async def body(arena: Arena) -> None:
        words = "client", arena.server.domid, arena.where, "echo", 30000
        async with (
            arena.listen(left, right) as server,
            stage.running(arena.client.domid, *words) as process,
        ):
            reader, writer = await server.accept()
            await there_and_back(reader, writer, 2 * max(left, right) + 12345)
            writer.close()
            await writer.wait_closed()
            assert await process.wait() == 0

    on(stage.arenas, body)


@pytest.mark.parametrize("chunk", [1, 1000, 65536])
def test_a_stream_from_and_to_libxenvchan(stage: Stage, chunk: int) -> None:
    """One direction only, as fast as it goes, in pieces of any size."""
    length = 300 * chunk + 99

    async def body(arena: Arena) -> None:
        words = "client", arena.server.domid, arena.where
        async with arena.listen(1 << 16, 1 << 16) as server:
            async with stage.running(
                arena.client.domid, *words, "source", length, chunk
            ) as process:
                reader, writer = await server.accept()
                assert await reader.readexactly(length) == pattern(length)
                writer.close()
                await writer.wait_closed()
                assert await process.wait() == 0
            accepting = asyncio.create_task(server.accept())
            # A client of libxenvchan's tries once.
            while not repr(server).endswith("offered>"):
                await asyncio.sleep(0.01)
            async with stage.running(arena.client.domid, *words, "sink", chunk) as process:
                _, writer = await accepting
                content = memoryview(pattern(length))
                for start in range(0, length, chunk):
                    await writer.send(content[start : start + chunk])
                writer.close()
                said, _ = await process.communicate()
                assert said.decode() == f"{length} bytes, 0 wrong\n"

    on(stage.arenas, body)


@pytest.mark.parametrize("serves", [True, False])
def test_libxenvchan_is_killed(stage: Stage, serves: bool) -> None:
    async def body(arena: Arena) -> None:
        if serves:
            words = "server", 0, 0, arena.client.domid, arena.where, "source", 500, 500
            async with stage.running(arena.server.domid, *words) as process:
                reader, writer = await arena.connect()
                await ends(process, reader, writer)
            await arena.server.store.rm(arena.where)
        else:
            words = "client", arena.server.domid, arena.where, "source", 500, 500
            async with (
                arena.listen() as server,
                stage.running(arena.client.domid, *words) as process,
            ):
                reader, writer = await server.accept()
                await ends(process, reader, writer)

    async def ends(
        process: asyncio.subprocess.Process, reader: VchanReader, writer: VchanWriter
    ) -> None:
        assert await reader.readexactly(100) == pattern(100)
        reading = asyncio.create_task(reader.read())
        await asyncio.sleep(0)
        process.kill()
        assert await reading == pattern(500)[100:]
        with pytest.raises(ConnectionError):
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    on(stage.arenas, body)
