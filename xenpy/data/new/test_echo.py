# SPDX-License-Identifier: MIT
"""Both halves of `echo`: over the fakes, and on Xen where there is one."""

import asyncio
import errno

import pytest
from echo import Echo, Request, Response

from xenpy.testing.ring import Pair, both, loopback, why_no_xen


@pytest.fixture(params=["fake", "xen"])
def pair(request: pytest.FixtureRequest) -> Pair:
    if request.param == "fake":
        return both
    if reason := why_no_xen():
        pytest.skip(reason)
    return loopback


def test_bytes_are_turned_around(pair: Pair) -> None:
    async def run() -> None:
        async with pair(Echo) as device:
            with device.grant() as page:
                page[:5] = b"hello"
                assert await device.request(Request(1, page.ref, 5)) == Response(1, 0)
                assert page[:6] == b"olleh\0"

    asyncio.run(run())


def test_a_length_that_leaves_the_page(pair: Pair) -> None:
    async def run() -> None:
        async with pair(Echo) as device:
            with device.grant() as page:
                answer = await device.request(Request(1, page.ref, 5000))
                assert answer == Response(1, -errno.EINVAL)

    asyncio.run(run())


def test_a_page_that_was_not_granted(pair: Pair) -> None:
    async def run() -> None:
        async with pair(Echo) as device:
            assert (await device.request(Request(1, 2**31, 5))).status < 0

    asyncio.run(run())
