# SPDX-License-Identifier: MIT
"""Tests of a project of somebody's: the first needs a real Xen, the second is run twice."""

import asyncio
from typing import NamedTuple

import pytest

from xenpy import Backend, RingProtocol
from xenpy.gnttab import GrantShare, GrantTable
from xenpy.testing.ring import Pair
from xenpy.types import DOM0
from xenpy.wire import i16, u32, u64


class Question(NamedTuple):
    id: u64
    value: u32


class Answer(NamedTuple):
    id: u64
    value: u32
    status: i16


class Doubler(Backend[Question, Answer]):
    protocol = RingProtocol("doubler", Question, Answer)

    def handle(self, request: Question) -> Answer:
        return Answer(request.id, 2 * request.value, 0)


@pytest.mark.xen
def test_a_page_is_the_same_from_both_sides() -> None:
    with GrantShare() as share, GrantTable() as table:
        ours = share.share(DOM0, 1)
        theirs = table.map(DOM0, ours.refs)
        ours.view()[:5] = b"hello"
        assert bytes(theirs.view(0, 5)) == b"hello"


@pytest.mark.parametrize("value", [0, 21])
def test_it_doubles(ring_pair: Pair, value: int) -> None:
    async def run() -> None:
        async with ring_pair(Doubler) as device:
            assert await device.request(Question(1, value)) == Answer(1, 2 * value, 0)

    asyncio.run(run())
