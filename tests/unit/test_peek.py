# SPDX-License-Identifier: MIT
"""Looking into a ring between two others: what is seen is right, and what is not is counted."""

from __future__ import annotations

import struct
import time
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from xenpy.memory import LocalMemory
from xenpy.peek import Peeker, PeekLayout
from xenpy.ring import BackRing, FrontRing, RingLayout
from xenpy.types import PAGE_SIZE

LAYOUT = RingLayout(request_size=112, response_size=16)
PEEK = PeekLayout(LAYOUT, request_id=8, response_id=0)
ENTRIES = LAYOUT.entries(1)


def request(ident: int) -> bytes:
    return struct.pack("<BBHIQ", 0, 1, 0, 0, ident).ljust(112, b"\7")


def response(ident: int) -> bytes:
    return struct.pack("<QBxhI", ident, 0, -(ident % 2), 0)


class Halves:
    """A frontend and a backend that answers in an order of its own."""

    def __init__(self, start: int = 0) -> None:
        self.page = LocalMemory(PAGE_SIZE)
        self.front = FrontRing(self.page, LAYOUT, start=start)
        self.back = BackRing(self.page, LAYOUT)
        self.peeker = Peeker([self.page], PEEK)
        self.taken: deque[int] = deque()
        self.asked = 0

    def __enter__(self) -> Halves:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()

    def ask(self, count: int) -> None:
        for _ in range(min(count, self.front.free)):
            self.front.put([request(1000 + self.asked)])
            self.asked += 1
        for slot in self.back.take():
            self.taken.append(struct.unpack_from("<Q", slot, 8)[0])

    def answer(self, count: int, turn: int) -> None:
        self.taken.rotate(turn)
        for _ in range(min(count, len(self.taken))):
            self.back.push([response(self.taken.popleft())])
        self.front.take()

    def look(self) -> list[tuple[int, int]]:
        """The ids of what was seen, and the status."""
        now = time.monotonic_ns()
        found = []
        for ring, record in self.peeker.look(1, now):
            (ident,) = struct.unpack_from("<Q", record.request, 8)
            assert ring == 0
            assert record.request == request(ident)
            assert record.response == response(ident)
            assert record.taken <= record.answered
            found.append((ident, struct.unpack_from("<h", record.response, 10)[0]))
        return found


def test_a_request_and_its_answer_are_seen_by_two_looks() -> None:
    with Halves() as halves:
        halves.ask(3)
        assert halves.look() == []
        assert halves.peeker.waiting == 3
        halves.answer(2, 1)
        assert halves.look() == [(1002, 0), (1000, 0)]
        assert (halves.peeker.asked, halves.peeker.lost, halves.peeker.waiting) == (3, 0, 1)


def test_what_comes_and_goes_between_two_looks_is_lost() -> None:
    with Halves() as halves:
        halves.ask(5)
        halves.answer(5, 0)
        assert halves.look() == []
        assert (halves.peeker.asked, halves.peeker.lost) == (5, 5)


def test_a_peeker_that_comes_later_sees_what_comes_then() -> None:
    with Halves() as halves:
        halves.ask(5)
        halves.peeker = Peeker([halves.page], PEEK)
        halves.answer(5, 0)
        assert halves.look() == []
        assert (halves.peeker.asked, halves.peeker.lost) == (0, 0)


steps = st.lists(
    st.tuples(st.sampled_from("aalr"), st.integers(1, 2 * ENTRIES), st.integers(0, 5)), max_size=60
)


@given(steps, st.sampled_from([0, 2**32 - 40, 2**31 - 7]))
def test_everything_is_seen_or_counted(steps: list[tuple[str, int, int]], start: int) -> None:
    """And nothing is seen twice, or wrong: `look` compares whole messages."""
    with Halves(start) as halves:
        seen: list[tuple[int, int]] = []
        for step, count, turn in steps:
            if step == "a":
                halves.ask(count)
            elif step == "r":
                halves.answer(count, turn)
            else:
                seen += halves.look()
        seen += halves.look()
        peeker = halves.peeker
        assert len({ident for ident, _ in seen}) == len(seen)
        assert all(status == -(ident % 2) for ident, status in seen)
        assert peeker.asked == halves.asked
        assert len(seen) + peeker.lost + peeker.waiting == halves.asked
        assert peeker.waiting <= ENTRIES


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=20))
def test_indices_of_any_value_cost_a_look_and_no_more(pairs: list[tuple[int, int]]) -> None:
    with Halves() as halves:
        for req_prod, rsp_prod in pairs:
            with halves.page.view() as view:
                struct.pack_into("<I4xI", view, 0, req_prod, rsp_prod)
            now = time.monotonic_ns()
            for _, record in halves.peeker.look(1, now):
                assert len(record.request) == 112
            assert halves.peeker.waiting <= ENTRIES


def test_an_answer_that_was_not_seen_is_counted_when_its_id_comes_again() -> None:
    with Halves() as halves:
        halves.front.put([request(7)])
        halves.look()
        halves.back.take()
        # Answered, and asked again a ring later, with nobody looking.
        halves.back.push([response(7)])
        halves.front.take()
        for number in range(ENTRIES):
            halves.front.put([request(100 + number)])
            halves.back.take()
            halves.back.push([response(100 + number)])
            halves.front.take()
        halves.front.put([request(7)])
        assert halves.look() == []
        assert (halves.peeker.asked, halves.peeker.waiting) == (ENTRIES + 2, 1)
        assert halves.peeker.lost == ENTRIES + 1
