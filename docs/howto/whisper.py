# SPDX-License-Identifier: MIT
"""The frontend of shout.py: for the guest."""

import asyncio

from shout import Shout

from xenpy import connect_stream


async def run() -> None:
    async with connect_stream(Shout.protocol) as stream:
        await stream.write(b"hello")
        print(await stream.readexactly(5))


asyncio.run(run())
