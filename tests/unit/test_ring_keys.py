# SPDX-License-Identifier: MIT
"""The keys that tell a backend the rings of a device of one's own: hostile when read."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.errors import PeerError
from xenpy.ring_keys import TRANSPORT_KEYS, RingPlace, read_rings, written
from xenpy.types import GrantRef, Port

ONE = {"ring-ref": "8", "event-channel": "3"}
TWO = {
    "multi-queue-num-queues": "2",
    "queue-0/ring-ref": "8", "queue-0/event-channel": "3",
    "queue-1/ring-ref": "9", "queue-1/event-channel": "4",
}  # fmt: skip


@given(order=st.integers(0, 4), count=st.integers(1, 64), first=st.integers(0, 2**31))
def test_what_is_written_is_read(order: int, count: int, first: int) -> None:
    refs = iter(range(first, first + (count << order)))
    places = [
        RingPlace([GrantRef(next(refs)) for _ in range(1 << order)], Port(1 + number))
        for number in range(count)
    ]
    keys = {key: str(value) for key, value in written(places).items()}
    assert read_rings(keys, max_ring_page_order=order, max_rings=count) == places
    # What a connection leaves behind is found by its first name, whatever is below that.
    assert all(TRANSPORT_KEYS.fullmatch(key.partition("/")[0]) for key in keys)


def test_one_ring_of_one_page_is_told_as_ever() -> None:
    assert written([RingPlace([GrantRef(8)], Port(3))]) == {"ring-ref": 8, "event-channel": 3}
    assert read_rings(ONE, max_ring_page_order=0, max_rings=1) == [
        RingPlace([GrantRef(8)], Port(3))
    ]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"ring-ref": "8"},
        {**ONE, "event-channel": "0x3"},
        {**ONE, "ring-page-order": "2"},
        {**ONE, "ring-page-order": "1"},
        {**ONE, "multi-queue-num-queues": "0"},
        {**ONE, "multi-queue-num-queues": "2"},
        {**ONE, "multi-queue-num-queues": "4000000000"},
        {**TWO, "multi-queue-num-queues": "3"},
        {**TWO, "queue-1/ring-ref": "8"},
        {**TWO, "queue-1/event-channel": "3"},
        {**TWO, "queue-1/event-channel": ""},
        {"ring-page-order": "1", "ring-ref0": "8", "ring-ref1": "8", "event-channel": "3"},
    ],
    ids=str,
)
def test_r6_what_makes_no_sense_is_refused(keys: Mapping[str, str]) -> None:
    with pytest.raises(PeerError):
        read_rings(keys, max_ring_page_order=1, max_rings=2)


def test_r6_more_rings_than_were_offered() -> None:
    more = {"multi-queue-num-queues": "3", "queue-2/ring-ref": "10", "queue-2/event-channel": "5"}
    assert len(read_rings({**TWO, **more}, max_ring_page_order=0, max_rings=3)) == 3
    with pytest.raises(PeerError, match="is 3, and 1 to 2 were offered"):
        read_rings({**TWO, **more}, max_ring_page_order=0, max_rings=2)


def test_two_rings_are_understood() -> None:
    found = read_rings(TWO, max_ring_page_order=1, max_rings=2)
    assert [int(place.port) for place in found] == [3, 4]
