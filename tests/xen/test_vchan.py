# SPDX-License-Identifier: MIT
"""The suites of vchan on a real Xen, domain 0 being its own peer; and a peer that is killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from conformance.daemon_process import XENPY
from conformance.vchan_arena import Arena, Arenas, loopback_arena
from conformance.vchan_hostile_suite import *  # noqa: F403 - the tests themselves
from conformance.vchan_suite import *  # noqa: F403
from conformance.vchan_suite import on
from conformance.xen_env import nothing_left_in_the_hypervisor
from fences import ROOT
from xenpy.errors import XenConnectionError

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]

CLIENT = """\
import asyncio, sys
from xenpy.drivers import vchan

async def main():
    reader, writer = await vchan.open_connection(0, sys.argv[1])
    writer.write(b"last words")
    print("connected", flush=True)
    await reader.read()

asyncio.run(main())
"""


@pytest.fixture
def arenas() -> Arenas:
    return loopback_arena


def test_a_client_that_is_killed(arenas: Arenas) -> None:
    """SIGKILL: the kernel clears its byte and notifies."""

    async def body(arena: Arena) -> None:
        async with arena.listen() as server:
            for _ in range(2):
                client = subprocess.Popen(
                    [sys.executable, "-c", CLIENT, arena.path], stdout=subprocess.PIPE, cwd=ROOT
                )
                reader, writer = await server.accept()
                assert await reader.readexactly(10) == b"last words"
                writer.write(bytes(9999))
                reading = asyncio.create_task(reader.read())
                await asyncio.sleep(0)
                with client:
                    client.kill()
                assert await reading == b""
                with pytest.raises(XenConnectionError):
                    await writer.drain()
                writer.close()
                await writer.wait_closed()

    on(arenas, body)


def test_a_server_that_is_killed_and_one_that_follows(arenas: Arenas) -> None:
    """Its keys stay in XenStore, and lead nowhere."""

    async def body(arena: Arena) -> None:
        words = [*XENPY, "vchan", "listen", "0", arena.path, "-q"]
        for _ in range(2):
            server = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT
            )
            reader, writer = await arena.connect(timeout=120)
            assert server.stdin is not None
            server.stdin.write(b"last words")
            server.stdin.flush()
            assert await reader.readexactly(10) == b"last words"
            reading = asyncio.create_task(reader.read())
            await asyncio.sleep(0)
            with server:
                server.kill()
            assert await reading == b""
            writer.close()
            await writer.wait_closed()
        await arena.server.store.rm(arena.where)

    on(arenas, body)
