# SPDX-License-Identifier: MIT
"""The programs of docs/howto/vchan.md, with each other, over the fakes."""

from __future__ import annotations

import asyncio

from conformance.vchan_arena import Arena, fake_arena
from conformance.vchan_suite import on
from examples import load

shout = load("docs/howto/vchan_shout.py")["shout"]
ask = load("docs/howto/vchan_ask.py")["ask"]


def test_lines_are_answered_in_capitals() -> None:
    async def body(arena: Arena) -> None:
        async with arena.listen() as server:
            shouting = asyncio.create_task(shout(server))
            for line in ("hello", "again", ""):
                reader, writer = await arena.connect()
                assert await ask(reader, writer, line) == line.upper()
                writer.close()
                await writer.wait_closed()
            shouting.cancel()
            await asyncio.wait([shouting])

    on(fake_arena, body)
