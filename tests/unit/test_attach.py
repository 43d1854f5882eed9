# SPDX-License-Identifier: MIT
"""Making and removing a device's nodes, where the command line does not show it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.attach import DevicePlan, attach, detach, endpoints, parse_words
from xenpy.backend import DeviceError
from xenpy.errors import XenTimeoutError
from xenpy.paths import parse_backend_path
from xenpy.store_pyxs import Op
from xenpy.testing.fake_xenstored import FakeXenstored, Request
from xenpy.types import DOM0, DevId, DomId
from xenpy.xenstore import Store

PATIENCE = 20.0
GUEST, OTHER = DomId(7), DomId(8)
PLAN = DevicePlan("toy", "toy-kind", DevId(3), {"colour": "red"}, {"size": 5})
ENDS = endpoints(GUEST, "toy", "toy-kind", DevId(3), DOM0)


def run(test: Callable[[FakeXenstored, Store], Awaitable[None]]) -> None:
    """Run `test` on a store that knows two guests."""

    async def main() -> None:
        async with FakeXenstored() as fake:
            fake.introduce(GUEST)
            fake.introduce(OTHER)
            async with Store.open(fake.path, timeout=PATIENCE) as store, asyncio.timeout(PATIENCE):
                await test(fake, store)

    asyncio.run(main())


async def answer(store: Store, path: str, state: int, reply: dict[str, str | int]) -> None:
    """Wait until the state at `path` is `state`, then write `reply` beside it."""
    async with store.watch(f"{path}/state") as watch:
        async for _ in watch:
            if await store.get(f"{path}/state") == str(state):
                for key, value in reply.items():
                    await store.write(f"{path}/{key}", value)
                return


SERVED: dict[str, str | int] = {"hotplug-status": "connected", "state": 2}
CLOSED: dict[str, str | int] = {"state": 6}

names = st.text(min_size=1, max_size=8).filter(lambda name: "=" not in name)


@given(st.dictionaries(names, st.text(max_size=8)))
def test_words_become_what_they_say(pairs: dict[str, str]) -> None:
    assert parse_words([f"{key}={value}" for key, value in pairs.items()]) == pairs


@given(st.lists(st.text("ab=", max_size=4), max_size=4))
def test_words_are_taken_whole_or_refused(given_words: list[str]) -> None:
    keys = [word.partition("=")[0] for word in given_words]
    good = all("=" in word for word in given_words) and all(keys) and len(set(keys)) == len(keys)
    if good:
        assert [f"{k}={v}" for k, v in parse_words(given_words).items()] == given_words
    else:
        with pytest.raises(ValueError, match=r"is not key=value|is given twice"):
            parse_words(given_words)


@given(st.integers(0, 32751), st.integers(0, 2**32 - 1), st.integers(0, 32751))
def test_the_two_ends_are_where_a_backend_looks(domid: int, devid: int, backend_domid: int) -> None:
    ends = endpoints(DomId(domid), "vbd", "vbd3", DevId(devid), DomId(backend_domid))
    assert parse_backend_path(ends.backend) == (backend_domid, "vbd3", domid, devid)
    assert ends.frontend == f"/local/domain/{domid}/device/vbd/{devid}"


def test_a_driver_domain_owns_its_half() -> None:
    async def test(fake: FakeXenstored, store: Store) -> None:
        ends = endpoints(GUEST, "toy", "toy-kind", DevId(3), OTHER)
        serving = asyncio.create_task(answer(store, ends.backend, 1, SERVED))
        assert await attach(store, GUEST, PLAN, backend_domid=OTHER) == ends
        await serving
        assert str(await store.get_perms(ends.backend)) == "n8,r7"
        assert str(await store.get_perms(f"{ends.backend}/colour")) == "n8,r7"
        assert str(await store.get_perms(ends.frontend)) == "n7,r8"
        assert await store.read(f"{ends.frontend}/backend-id") == "8"

    run(test)


def test_a_change_in_between_starts_over() -> None:
    """Somebody else makes another device meanwhile: the transaction conflicts."""

    async def test(fake: FakeXenstored, store: Store) -> None:
        serving = asyncio.create_task(answer(store, ENDS.backend, 1, SERVED))
        attaching = asyncio.create_task(attach(store, GUEST, PLAN))
        for number in range(20):
            await store.write(f"/local/domain/7/device/toy/9/n{number}", number)
        assert await attaching == ENDS
        await serving

    run(test)


def test_a_backend_that_never_says_connected_is_asked_to_close() -> None:
    async def test(fake: FakeXenstored, store: Store) -> None:
        taken = asyncio.create_task(answer(store, ENDS.backend, 1, {"state": 2}))
        closing = asyncio.create_task(answer(store, ENDS.backend, 5, CLOSED))
        with pytest.raises(DeviceError, match=r"no backend answered within 0\.5 s"):
            await attach(store, GUEST, PLAN, timeout=0.5)
        await asyncio.gather(taken, closing)
        assert not await store.exists(ENDS.backend)
        assert not await store.exists(ENDS.frontend)

    run(test)


def test_a_backend_that_takes_it_up_at_the_last_moment_is_not_pulled_away_from_under() -> None:
    """The transaction that would remove the nodes conflicts with the state that it writes."""

    async def test(fake: FakeXenstored, store: Store) -> None:
        await store.write(f"{ENDS.backend}/state", 1)
        ended = 0

        def take_up(request: object) -> None:
            nonlocal ended
            op = getattr(request, "op", None)
            if op == Op.TRANSACTION_END:
                ended += 1
                if ended == 1:
                    assert fake.get(f"{ENDS.backend}/state") == "1", "it is there until the end"
                    fake.write(f"{ENDS.backend}/state", "2")

        fake.on_request = take_up
        closing = asyncio.create_task(answer(store, ENDS.backend, 5, CLOSED))
        await detach(store, ENDS)
        await closing
        assert ended >= 2
        assert not await store.exists(ENDS.backend)

    run(test)


def test_where_a_guest_points_to_is_not_followed() -> None:
    async def test(fake: FakeXenstored, store: Store) -> None:
        other = endpoints(OTHER, "toy", "toy-kind", DevId(3), DOM0).backend
        for path in (ENDS.frontend, ENDS.backend, other):
            await store.write(f"{path}/state", 4)
        fake.write(f"{ENDS.frontend}/backend", other)
        closing = asyncio.create_task(answer(store, ENDS.backend, 5, CLOSED))
        await detach(store, ENDS)
        await closing
        assert await store.read(f"{other}/state") == "4"
        assert not await store.exists(ENDS.backend)

    run(test)


def test_the_last_device_of_a_guest_takes_its_directory_along() -> None:
    async def test(fake: FakeXenstored, store: Store) -> None:
        second = endpoints(GUEST, "toy", "toy-kind", DevId(4), DOM0)
        for ends in (ENDS, second):
            await store.write(f"{ends.backend}/state", 1)
        directory = ENDS.backend.rpartition("/")[0]
        await detach(store, ENDS)
        assert await store.list(directory) == ["4"]
        await detach(store, second)
        assert not await store.exists(directory)

    run(test)


def test_a_refused_close_leaves_the_nodes() -> None:
    async def test(fake: FakeXenstored, store: Store) -> None:
        await store.write(f"{ENDS.backend}/state", 4)
        with pytest.raises(XenTimeoutError):
            await detach(store, ENDS, timeout=0.2)
        assert await store.read(f"{ENDS.backend}/state") == "5"
        assert await store.read(f"{ENDS.backend}/online") == "0"

    run(test)


def test_a_device_made_while_the_last_one_goes_stays() -> None:
    """Between the look at the directory of the guest's devices and its removal."""

    async def test(fake: FakeXenstored, store: Store) -> None:
        parent, _, _ = ENDS.backend.rpartition("/")

        def make(request: Request) -> None:
            if request.op == Op.RM and request.payload == f"{parent}\0".encode():
                fake.on_request = None
                fake.write(f"{parent}/4/state", "1")

        fake.write(f"{ENDS.backend}/state", "1")
        fake.on_request = make
        await detach(store, ENDS)
        assert fake.on_request is None
        assert fake.get(f"{parent}/4/state") == "1"
        assert fake.get(f"{ENDS.backend}/state") is None

    run(test)


def test_a_device_that_is_closed_is_not_asked_again() -> None:
    """Nobody may be there to answer, and libxl does not ask either."""

    async def test(fake: FakeXenstored, store: Store) -> None:
        fake.write(f"{ENDS.backend}/state", "6")
        await detach(store, ENDS, timeout=1.0)
        assert fake.get(f"{ENDS.backend}/state") is None

    run(test)
