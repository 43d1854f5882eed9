# SPDX-License-Identifier: MIT
"""xenpy's rings and the macros of the installed xen/io/ring.h, side by side on two pages.

The same random schedule is given to both; after each step the answers and every byte of the
pages must be equal.  The second test lets one half of each kind work on the same page.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from compiling import compile_c
from xenpy.memory import LocalMemory
from xenpy.ring import BackRing, FrontRing, RingLayout
from xenpy.types import PAGE_SIZE

LAYOUTS = {"large": RingLayout(112, 16), "small": RingLayout(4, 12)}
STARTS = [0, 1, 2**32 - 1, 2**32 - 7, 2**31 - 3]
OPERATIONS = ["put", "back_take", "push", "back_final", "front_take", "front_final"]
SCHEDULES = 12


class Front(Protocol):
    def put(self, messages: list[bytes]) -> bool: ...
    def take(self, limit: int) -> list[bytes]: ...
    def final_check(self) -> bool: ...


class Back(Protocol):
    def take(self, limit: int) -> list[bytes]: ...
    def push(self, messages: list[bytes]) -> bool: ...
    def final_check(self) -> bool: ...


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    source = Path(__file__).with_name("ring_oracle.c")
    library = tmp_path_factory.mktemp("oracle") / "oracle.so"
    # The headers compare signed with unsigned.
    return ctypes.CDLL(str(compile_c(source, library, "-shared", "-fPIC", "-Wno-sign-compare")))


class Macros:
    """What both halves in C have in common."""

    def __init__(self, oracle: ctypes.CDLL, name: str, page: ctypes.Array[ctypes.c_char]) -> None:
        self._oracle = oracle
        self._name = name
        self._page = page
        self._layout = LAYOUTS[name]
        self._ring = ctypes.c_void_p()

    def _call(self, function: str, *arguments: object) -> int:
        return int(getattr(self._oracle, f"{self._name}_{function}")(self._ring, *arguments))

    def _open(self, function: str, *arguments: object) -> None:
        make = getattr(self._oracle, f"{self._name}_{function}")
        make.restype = ctypes.c_void_p
        self._ring = ctypes.c_void_p(make(self._page, *arguments))

    def _take(self, function: str, size: int, limit: int) -> list[bytes]:
        out = ctypes.create_string_buffer(max(1, size * limit))
        count = self._call(function, out, limit)
        return [out.raw[number * size : (number + 1) * size] for number in range(count)]


class MacroFront(Macros):
    def __init__(
        self, oracle: ctypes.CDLL, name: str, page: ctypes.Array[ctypes.c_char], pages: int, at: int
    ) -> None:
        super().__init__(oracle, name, page)
        self._open("front", pages, ctypes.c_uint32(at))

    def put(self, messages: list[bytes]) -> bool:
        return bool(self._call("put", b"".join(messages), len(messages)))

    def take(self, limit: int) -> list[bytes]:
        return self._take("front_take", self._layout.response_size, limit)

    def final_check(self) -> bool:
        return bool(self._call("front_final"))


class MacroBack(Macros):
    def __init__(
        self, oracle: ctypes.CDLL, name: str, page: ctypes.Array[ctypes.c_char], pages: int
    ) -> None:
        super().__init__(oracle, name, page)
        self._open("back", pages)

    def take(self, limit: int) -> list[bytes]:
        return self._take("back_take", self._layout.request_size, limit)

    def push(self, messages: list[bytes]) -> bool:
        return bool(self._call("push", b"".join(messages), len(messages)))

    def final_check(self) -> bool:
        return bool(self._call("back_final"))


class Pair:
    """A frontend and a backend on one ring, and what is between them."""

    def __init__(self, front: Front, back: Back, page: Callable[[], bytes]) -> None:
        self.front = front
        self.back = back
        self.page = page

    def step(
        self, operation: str, count: int, random_bytes: Callable[[int], bytes], layout: RingLayout
    ) -> object:
        """Do one operation.  `count` is legal: the schedule has seen to that."""
        if operation == "put":
            return self.front.put([random_bytes(layout.request_size) for _ in range(count)])
        if operation == "push":
            return self.back.push([random_bytes(layout.response_size) for _ in range(count)])
        if operation == "back_take":
            return self.back.take(count)
        if operation == "front_take":
            return self.front.take(count)
        if operation == "back_final":
            return self.back.final_check()
        return self.front.final_check()


class Legal:
    """Turns random counts into those that neither side may refuse."""

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self.asked = self.taken = self.answered = self.seen = 0

    def __call__(self, operation: str, count: int) -> int:
        if operation == "put":
            count = min(count, self.entries - (self.asked - self.seen))
            self.asked += count
        elif operation == "back_take":
            count = min(count, self.asked - self.taken)
            self.taken += count
        elif operation == "push":
            count = min(count, self.taken - self.answered)
            self.answered += count
        elif operation == "front_take":
            count = min(count, self.answered - self.seen)
            self.seen += count
        return count


def steps(rng: random.Random, entries: int) -> Iterator[tuple[str, int]]:
    """A schedule long enough to go round the ring: operations, and counts to be made legal."""
    for _ in range(300):
        yield rng.choice(OPERATIONS), rng.choice([0, 1, rng.randrange(10), entries])


class Boards:
    """Two pages of each kind of memory: the oracle's and ours."""

    def __init__(self, oracle: ctypes.CDLL, name: str, nr_pages: int) -> None:
        self.oracle, self.name, self.nr_pages = oracle, name, nr_pages
        self.layout = LAYOUTS[name]
        self.theirs = ctypes.create_string_buffer(nr_pages * PAGE_SIZE)
        self.ours = LocalMemory(nr_pages * PAGE_SIZE)
        self.our_array = (ctypes.c_char * self.ours.size).from_buffer(self.ours.view())

    def wipe(self) -> None:
        """A FrontRing clears its pages, SHARED_RING_INIT the header alone."""
        ctypes.memset(self.theirs, 0, self.ours.size)
        ctypes.memset(self.our_array, 0, self.ours.size)

    def c_pair(self, start: int) -> Pair:
        front = MacroFront(self.oracle, self.name, self.theirs, self.nr_pages, start)
        back = MacroBack(self.oracle, self.name, self.theirs, self.nr_pages)
        return Pair(front, back, lambda: self.theirs.raw)

    def python_pair(self, start: int) -> Pair:
        front = FrontRing(self.ours, self.layout, nr_pages=self.nr_pages, start=start)
        back = BackRing(self.ours, self.layout, nr_pages=self.nr_pages)
        return Pair(front, back, self._our_page)

    def close(self) -> None:
        del self.our_array
        self.ours.close()

    def _our_page(self) -> bytes:
        with self.ours.view() as view:
            return bytes(view)


@pytest.fixture(params=[("large", 1), ("large", 4), ("small", 1)], ids=str)
def boards(request: pytest.FixtureRequest, oracle: ctypes.CDLL) -> Iterator[Boards]:
    name, nr_pages = request.param
    boards = Boards(oracle, name, nr_pages)
    yield boards
    boards.close()


def test_the_number_of_slots_is_ring_h_s(boards: Boards) -> None:
    entries = getattr(boards.oracle, f"{boards.name}_entries")
    for nr_pages in range(1, 17):
        assert boards.layout.entries(nr_pages) == entries(nr_pages)


def compare(
    boards: Boards, pairs: Callable[[int], tuple[Pair, Pair]], start: int, seed: int
) -> None:
    """Give both pairs the same random schedules; answers and pages stay equal."""
    for number in range(SCHEDULES):
        boards.wipe()
        theirs, ours = pairs(start)
        rng = random.Random(f"{seed} {number}")
        legal = Legal(boards.layout.entries(boards.nr_pages))
        one, other = random.Random(number), random.Random(number)
        for operation, wanted in steps(rng, legal.entries):
            count = legal(operation, wanted)
            expected = theirs.step(operation, count, one.randbytes, boards.layout)
            assert ours.step(operation, count, other.randbytes, boards.layout) == expected
            assert ours.page() == theirs.page(), (operation, count)
        assert legal.seen > legal.entries, "the schedule did not go round the ring"


@pytest.mark.parametrize("start", STARTS)
def test_the_same_schedule_leaves_the_same_pages(boards: Boards, start: int) -> None:
    compare(boards, lambda at: (boards.c_pair(at), boards.python_pair(at)), start, 20)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("side", ["front", "back"])
def test_one_half_of_each_kind_on_one_page(boards: Boards, side: str, start: int) -> None:
    """Ours against theirs, as it is on Xen: what one side sent, the other has taken."""
    shared, page = boards.ours, boards.our_array

    def pairs(at: int) -> tuple[Pair, Pair]:
        theirs = boards.c_pair(at)
        if side == "front":
            front: Front = FrontRing(shared, boards.layout, nr_pages=boards.nr_pages, start=at)
            back: Back = MacroBack(boards.oracle, boards.name, page, boards.nr_pages)
        else:
            front = MacroFront(boards.oracle, boards.name, page, boards.nr_pages, at)
            back = BackRing(shared, boards.layout, nr_pages=boards.nr_pages)
        return theirs, Pair(front, back, lambda: page.raw)

    compare(boards, pairs, start, 21)
