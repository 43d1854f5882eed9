# SPDX-License-Identifier: MIT
"""The frontend of xor.py: for the guest."""

import asyncio

from xor import Request, Xor

from xenpy import connect


async def run() -> None:
    async with connect(Xor.protocol) as device:
        with device.grant() as page:
            page[:5] = b"hello"
            answer = await device.request(Request(id=1, ref=page.ref, key=0x20))
            print(answer.status, page[:5])


asyncio.run(run())
