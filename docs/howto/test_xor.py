# SPDX-License-Identifier: MIT
"""Both halves of xor.py without Xen."""

import asyncio

from xor import Request, Response, Xor

from xenpy.testing.ring import both


def test_twice_is_once_and_back() -> None:
    async def run() -> None:
        async with both(Xor) as device:
            with device.grant() as page:
                page[:3] = b"abc"
                assert await device.request(Request(1, page.ref, 0x20)) == Response(1, 0)
                assert page[:3] == b"ABC"
                await device.request(Request(2, page.ref, 0x20))
                assert page[:3] == b"abc"

    asyncio.run(run())
