# SPDX-License-Identifier: MIT
# The frontend of `echo`: run it in the guest.
"""Have a few bytes turned around."""

import asyncio

from echo import Echo, Request

from xenpy import connect


async def run() -> None:
    async with connect(Echo.protocol) as device:
        with device.grant() as page:
            page[:5] = b"hello"
            answer = await device.request(Request(id=1, ref=page.ref, length=5))
            print(answer.status, page[:5])


if __name__ == "__main__":
    asyncio.run(run())
