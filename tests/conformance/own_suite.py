# SPDX-License-Identifier: MIT
"""A protocol of one's own, both halves: one suite for the fakes and for a real Xen.

A module that runs it imports every name and defines two fixtures: `pair`, a
`xenpy.testing.ring.Pair`, and `enter`, which enters a `xenpy.testing.world.World`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import pytest

from xenpy.attach import endpoints, refresh
from xenpy.backend import DeviceContext, DeviceError, Keys
from xenpy.errors import PeerError, XenError
from xenpy.paths import backend_path
from xenpy.peer_keys import flag, number
from xenpy.ring_backend import Backend, driver_of
from xenpy.ring_frontend import connect
from xenpy.ring_protocol import Codec, RingProtocol
from xenpy.testing.ring import Pair
from xenpy.testing.world import World, device, reconfigure, serving
from xenpy.types import DOM0, DevId
from xenpy.wire import i16, u8, u16, u32, u64

BAD_REF = 2**31

Enter: TypeAlias = Callable[[], AbstractAsyncContextManager[World]]


class Request(NamedTuple):
    id: u64
    ref: u32
    length: u16
    operation: u8


class Response(NamedTuple):
    id: u64
    value: u32
    status: i16


WORK = RingProtocol("xenpy-work", Request, Response)
LARGE = RingProtocol("xenpy-work", Request, Response, max_ring_page_order=2)
SEVERAL = RingProtocol("xenpy-work", Request, Response, max_ring_page_order=1, max_rings=3)
SUM, REVERSE, SLOW, BUG, REFUSE, NONSENSE, FILL, ANOTHER, UNKNOWN, CANCELLED = range(10)


class Work(Backend[Request, Response]):
    protocol = WORK
    features = MappingProxyType({"feature-work": 1})
    max_inflight = 4
    running = 0
    most = 0

    async def handle(self, request: Request) -> Response:
        if request.operation == SUM:
            return Response(request.id, sum(self.read(request.ref, request.length)), 0)
        if request.operation == REVERSE:
            with self.map(request.ref, writable=True) as page:
                page[: request.length] = bytes(page[: request.length])[::-1]
        if request.operation == FILL:
            self.write(request.ref, b"w" * request.length, offset=16)
        if request.operation == SLOW:
            Work.running += 1
            Work.most = max(Work.most, Work.running)
            await asyncio.sleep(0.01)
            Work.running -= 1
        if request.operation == BUG:
            raise ZeroDivisionError
        if request.operation == REFUSE:
            raise OSError(errno.ENOSPC, "full")
        if request.operation == UNKNOWN:
            raise NotImplementedError
        if request.operation == CANCELLED:
            raise asyncio.CancelledError
        ident = request.id + (request.operation == ANOTHER)
        return Response(ident, 1 << 40 if request.operation == NONSENSE else 0, 0)


class Plain(Backend[Request, Response]):
    protocol = WORK

    def __init__(self, context: DeviceContext) -> None:
        super().__init__(context)
        self.events = ["made"]

    def handle(self, request: Request) -> Response:
        return Response(request.id, len(self.events), 0)

    async def connect(self) -> None:
        self.events.append(self.frontend["ring-ref"])

    async def disconnect(self) -> None:
        self.events.append("gone")


class Batched(Backend[Request, Response]):
    """Answers together; the value is how many they were."""

    protocol = WORK
    max_inflight = 8

    def handle_batch(self, requests: Sequence[Request]) -> Sequence[Response]:
        if any(request.operation == REFUSE for request in requests):
            raise OSError(errno.ENOSPC, "full")
        if any(request.operation == ANOTHER for request in requests):
            return []
        if any(request.operation == CANCELLED for request in requests):
            raise asyncio.CancelledError
        return [Response(request.id, len(requests), 0) for request in requests]


class Large(Work):
    protocol = LARGE
    max_inflight = 1000


class Several(Work):
    protocol = SEVERAL


class Tuned(Backend[Request, Response]):
    """Answers with what it is set to."""

    protocol = WORK
    features = MappingProxyType({"level": 1, "colour": "blue"})
    settings = MappingProxyType({"level": "what it answers", "colour": "of no effect"})

    def __init__(self, context: DeviceContext) -> None:
        super().__init__(context)
        self.level = int(context.backend_keys.get("level", "1"))

    async def reconfigure(self) -> Keys:
        level = int(self.context.backend_keys["level"])
        if level > 100:
            raise DeviceError(f"level is {level}, 100 at most")
        self.level = level
        return {"max-level": level}

    def handle(self, request: Request) -> Response:
        return Response(request.id, self.level, 0)


def ask(pair: Pair, *requests: Request, data: bytes = b"") -> list[tuple[Response, bytes]]:
    """Each answer, and what the page holds then."""

    async def main() -> list[tuple[Response, bytes]]:
        async with pair(Work) as link:
            assert link.backend["feature-work"] == "1"
            answers: list[tuple[Response, bytes]] = []
            for request in requests:
                with link.grant() as page:
                    page[: len(data)] = data
                    ref = BAD_REF if request.ref else page.ref
                    answer = await link.request(request._replace(ref=ref))
                    answers.append((answer, page[:32]))
            return answers

    return asyncio.run(main())


def test_keys_of_both_sides(pair: Pair) -> None:
    made: list[Work] = []

    def make(context: DeviceContext) -> Work:
        made.append(Work(context))
        return made[-1]

    async def main() -> None:
        async with pair(Work, make, features={"feature-dim": 1}) as link:
            assert flag(link.backend, "feature-work")
            assert flag(made[0].frontend, "feature-dim")

    asyncio.run(main())


def test_pages_are_read_mapped_and_written(pair: Pair) -> None:
    words = (SUM, REVERSE, FILL)
    found = ask(pair, *(Request(5, 0, 5, word) for word in words), data=b"hello")
    (summed, _), (_, reversed_), (_, filled) = found
    assert summed == Response(5, sum(b"hello"), 0)
    assert reversed_[:5] == b"olleh"
    assert filled == b"hello".ljust(16, b"\0") + b"wwwww".ljust(16, b"\0")


@pytest.mark.parametrize(
    ("operation", "number"),
    [
        (BUG, errno.EIO),
        (REFUSE, errno.ENOSPC),
        (NONSENSE, errno.EIO),
        (UNKNOWN, errno.EOPNOTSUPP),
        (ANOTHER, errno.EIO),
        (CANCELLED, errno.ECANCELED),
    ],
)
def test_a_handler_that_fails_costs_its_request(pair: Pair, operation: int, number: int) -> None:
    bad, good = ask(pair, Request(1, 0, 0, operation), Request(2, 0, 1, SUM), data=b"\x07")
    assert bad[0] == Response(1, 0, -number)
    assert good[0] == Response(2, 7, 0)


@pytest.mark.parametrize("operation", [SUM, REVERSE, FILL])
def test_g1_a_page_that_was_not_granted(pair: Pair, operation: int) -> None:
    bad, good = ask(pair, Request(1, BAD_REF, 8, operation), Request(2, 0, 1, SUM), data=b"\x07")
    assert bad[0].status < 0
    assert good[0] == Response(2, 7, 0)


@pytest.mark.parametrize("operation", [SUM, FILL])
def test_a_length_that_leaves_the_page(pair: Pair, operation: int) -> None:
    ((answer, _),) = ask(pair, Request(1, 0, 65535, operation))
    assert answer == Response(1, 0, -errno.EINVAL)


def test_more_requests_than_fit(pair: Pair) -> None:
    """Into the ring, and into what a backend works on at a time."""

    async def main() -> list[Response]:
        async with pair(Work) as link:
            requests = (link.request(Request(ident, 0, 0, SLOW)) for ident in range(300))
            return await asyncio.gather(*requests)

    Work.most = 0
    assert [answer.id for answer in asyncio.run(main())] == list(range(300))
    assert Work.most == Work.max_inflight


def test_plain_functions_and_the_life_of_a_device(pair: Pair) -> None:
    made: list[Plain] = []

    def make(context: DeviceContext) -> Plain:
        made.append(Plain(context))
        return made[-1]

    async def main() -> None:
        async with pair(Plain, make) as link:
            assert await link.request(Request(1, 0, 0, 0)) == Response(1, 2, 0)

    asyncio.run(main())
    (backend,) = made
    assert (backend.events[0], backend.events[2:]) == ("made", ["gone"])
    assert backend.events[1].isdigit()


def test_answers_to_all_that_came_together(pair: Pair) -> None:
    async def main() -> None:
        async with pair(Batched) as link:
            requests = (link.request(Request(ident, 0, 0, 0)) for ident in range(100))
            answers = await asyncio.gather(*requests)
            assert [answer.id for answer in answers] == list(range(100))
            assert 1 < max(answer.value for answer in answers) <= Batched.max_inflight
            wrong = {REFUSE: errno.ENOSPC, ANOTHER: errno.EIO, CANCELLED: errno.ECANCELED}
            for operation, number in wrong.items():
                bad = [link.request(Request(ident, 0, 0, operation)) for ident in range(3)]
                assert {answer.status for answer in await asyncio.gather(*bad)} == {-number}

    asyncio.run(main())


def test_a_ring_of_four_pages(pair: Pair) -> None:
    """Takes more than one page has slots, without waiting."""
    one, four = (LARGE.codec().layout.entries(pages) for pages in (1, 4))

    async def main() -> None:
        async with pair(Large) as link:
            assert number(link.backend, "max-ring-page-order") == 2
            requests = (link.request(Request(ident, 0, 0, SLOW)) for ident in range(four + 10))
            answers = await asyncio.gather(*requests)
            assert [answer.id for answer in answers] == list(range(four + 10))

    Work.most = 0
    asyncio.run(main())
    assert one < Work.most <= four


@pytest.mark.parametrize(("wanted", "rings"), [(1, 1), (2, 2), (9, 3)])
def test_several_rings(pair: Pair, wanted: int, rings: int) -> None:
    """Each has ids, slots and requests in work of its own, and any may name a page."""
    made: list[Several] = []

    def make(context: DeviceContext) -> Several:
        made.append(Several(context))
        return made[-1]

    async def main() -> None:
        async with pair(Several, make, rings=wanted) as link:
            assert link.rings == rings
            assert made[0].frontend.get("multi-queue-num-queues", "1") == str(rings)
            assert number(made[0].frontend, "ring-page-order") == 1
            with link.grant() as page:
                page[:4] = b"abcd"
                asked = [
                    link.request(Request(ident, page.ref, 4, SUM), ring=ring)
                    for ring in range(rings) for ident in range(40)
                ]  # fmt: skip
                answers = await asyncio.gather(*asked)
            assert answers == [Response(n, sum(b"abcd"), 0) for n in range(40)] * rings
            slow = [
                link.request(Request(ident, 0, 0, SLOW), ring=ring)
                for ring in range(rings) for ident in range(6)
            ]  # fmt: skip
            await asyncio.gather(*slow)
            with pytest.raises(ValueError, match=f"no ring {rings}"):
                await link.request(Request(0, 0, 0, SLOW), ring=rings)

    Work.most = 0
    asyncio.run(main())
    assert Several.most <= Several.max_inflight * rings
    assert Several.most > Several.max_inflight * (rings - 1)


def test_settings_and_others_later(enter: Enter) -> None:
    """The frontend is told; what the backend does not take leaves everything as it was."""

    async def main() -> None:
        driver = driver_of(Tuned, WORK, settings=Tuned.settings)
        seen: list[str | None] = []
        async with (
            enter() as world,
            serving(world, driver),
            device(world, driver, settings={"level": "7"}),
            connect(
                WORK, domid=world.domid, store=world.store, xen=world.frontend,
                on_change=lambda keys: seen.append(keys.get("max-level")),
            ) as link,
        ):  # fmt: skip

            async def level() -> int:
                return (await link.request(Request(1, 0, 0, SUM))).value

            path = f"{backend_path(DOM0, WORK.name, world.domid, DevId(0))}/level"
            assert await level() == 7
            assert (link.backend["level"], link.backend["colour"]) == ("7", "blue")
            await reconfigure(world, driver, {"level": "9", "colour": "red"})
            assert await level() == 9
            for _ in range(500):
                if "9" in seen:
                    break
                await asyncio.sleep(0.01)
            assert seen[-1] == "9"
            assert (link.backend["level"], link.backend["colour"]) == ("9", "red")
            for text, why in (("101", "100 at most"), ("many", "reconfigure: ValueError")):
                with pytest.raises(DeviceError, match=why):
                    await reconfigure(world, driver, {"level": text})
                assert await level() == 9
                assert await world.store.read(path) == "9"
            await reconfigure(world, driver, {"level": "3"})
            assert await level() == 3

    asyncio.run(main())


def test_a_backend_without_settings_takes_none(enter: Enter) -> None:
    async def main() -> None:
        driver = driver_of(Work, WORK)
        async with enter() as world, serving(world, driver), device(world, driver):
            with pytest.raises(ValueError, match="takes devid=N, and no 'level'"):
                await reconfigure(world, driver, {"level": "9"})
            ends = endpoints(world.domid, WORK.name, WORK.name, DevId(0), DOM0)
            with pytest.raises(DeviceError, match="no others later"):
                await refresh(world.store, ends, {"level": "9"})
            assert await world.store.get(f"{ends.backend}/level") is None

    asyncio.run(main())


def test_an_id_that_is_in_flight_and_a_value_that_does_not_fit(pair: Pair) -> None:
    async def main() -> None:
        async with pair(Work) as link:
            first = asyncio.create_task(link.request(Request(1, 0, 0, SLOW)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with pytest.raises(ValueError, match="in flight"):
                await link.request(Request(1, 0, 0, SLOW))
            with pytest.raises(ValueError, match="does not fit"):
                await link.request(Request(2, 0, 1 << 16, SUM))
            assert (await first).status == 0

    asyncio.run(main())


def test_a_caller_that_gives_up_leaves_the_others_alone(pair: Pair) -> None:
    async def main() -> None:
        async with pair(Work) as link:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(link.request(Request(1, 0, 0, SLOW)), 0.001)
            assert (await link.request(Request(2, 0, 0, SLOW))).status == 0

    asyncio.run(main())


def test_f1_an_answer_to_nobody_s_question(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the connection, and the caller is told why."""
    pack = Codec.pack_response

    def another(codec: Codec[Request, Response], response: Response) -> bytes:
        return pack(codec, response._replace(id=response.id + 1))

    async def main() -> None:
        async with pair(Work) as link:
            monkeypatch.setattr(Codec, "pack_response", another)
            with pytest.raises(PeerError, match="not in flight"):
                await link.request(Request(1, 0, 0, SLOW))
            with pytest.raises(PeerError):
                await link.request(Request(2, 0, 0, SLOW))

    asyncio.run(main())


def test_after_the_end_there_is_no_answer(pair: Pair) -> None:
    async def main() -> None:
        async with pair(Work) as link:
            pass
        with pytest.raises(XenError):
            await link.request(Request(1, 0, 0, SUM))

    asyncio.run(main())
