# SPDX-License-Identifier: MIT
"""A connection to a xenstored that is silent, slow, forgetful or mad."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import Awaitable, Callable

import pytest

from xenpy import xenstore
from xenpy.errors import XenConnectionError, XenError, XenTimeoutError
from xenpy.store_connection import MAX_IN_FLIGHT
from xenpy.store_pyxs import Connection, Op, connect
from xenpy.testing.fake_xenstored import FakeXenstored, Request
from xenpy.xenstore import Store, Transaction

PATIENCE = 20.0
SHORT = 0.2
HEADER = struct.Struct("<IIII")


def with_store(timeout: float) -> Callable[[Test], Callable[[], None]]:
    """Run an async test with a fake xenstored and a store whose time-out is `timeout`."""

    def decorate(test: Test) -> Callable[[], None]:
        async def main() -> None:
            async with (
                asyncio.timeout(PATIENCE),
                FakeXenstored() as fake,
                Store.open(fake.path, timeout=timeout) as store,
            ):
                await test(fake, store)

        def run() -> None:
            asyncio.run(main())

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


Test = Callable[[FakeXenstored, Store], Awaitable[None]]


async def outcomes(*calls: Awaitable[object]) -> list[object]:
    return list(await asyncio.gather(*calls, return_exceptions=True))


@with_store(SHORT)
async def test_a_silent_xenstored_is_a_time_out(fake: FakeXenstored, store: Store) -> None:
    fake.hold()
    (error,) = await outcomes(store.read("/tool"))
    assert isinstance(error, XenTimeoutError)
    assert "read(path='/tool')" in str(error)
    assert "does xenstored still run?" in str(error)
    fake.release()
    # The late answer is nobody's; the connection goes on.
    assert await store.read("/tool/xenstored") == ""
    assert store.reconnects == 0


@with_store(SHORT)
async def test_a_slow_xenstored_is_none(fake: FakeXenstored, store: Store) -> None:
    """Each answer comes in time, the last of them long after the time-out of the first."""
    fake.hold()
    asked = [asyncio.create_task(store.read("/tool/xenstored")) for _ in range(8)]
    for number, task in enumerate(asked):
        await asyncio.sleep(SHORT / 2)
        fake.answer_one()
        assert await task == "", f"request {number}"


@with_store(SHORT)
async def test_a_forgotten_request_is_a_time_out_though_others_are_answered(
    fake: FakeXenstored, store: Store
) -> None:
    def forget(message: bytes) -> bytes:
        return b"" if b"forgotten" in message else message

    await store.write("/v", "forgotten")
    fake.mangle = forget
    forgotten = asyncio.create_task(store.read("/v"))
    while not forgotten.done():
        assert await store.read("/tool/xenstored") == ""
        await asyncio.sleep(SHORT / 10)
    assert isinstance(forgotten.exception(), XenTimeoutError)


@with_store(PATIENCE)
async def test_no_more_than_so_many_are_in_flight(fake: FakeXenstored, store: Store) -> None:
    fake.hold()
    asked = [asyncio.create_task(store.read("/tool/xenstored")) for _ in range(3 * MAX_IN_FLIGHT)]
    while fake.waiting < MAX_IN_FLIGHT:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert fake.waiting == MAX_IN_FLIGHT
    # Some lose interest: those that wait are never sent.
    for task in asked[MAX_IN_FLIGHT + 1 :: 2]:
        task.cancel()
    before = len(fake.requests)
    fake.release()
    answers = await outcomes(*asked)
    assert answers.count("") == 2 * MAX_IN_FLIGHT
    assert len(fake.requests) - before == 2 * MAX_IN_FLIGHT


@with_store(SHORT)
async def test_a_xenstored_that_answers_nobody_is_left(fake: FakeXenstored, store: Store) -> None:
    fake.hold()
    errors = await outcomes(*(store.read("/tool") for _ in range(2 * MAX_IN_FLIGHT)))
    assert {type(error) for error in errors} <= {XenTimeoutError, XenConnectionError}
    fake.release()
    while store.reconnects == 0:
        await asyncio.sleep(0.01)
    assert await store.read("/tool/xenstored") == ""


def replaced(field: int, value: int) -> Callable[[bytes], bytes]:
    """A daemon that gets one field of every answer to a READ wrong."""

    def mangle(message: bytes) -> bytes:
        fields = list(HEADER.unpack_from(message))
        if fields[0] == Op.READ:
            fields[field] = value
        return HEADER.pack(*fields) + message[HEADER.size :]

    return mangle


@pytest.mark.parametrize(
    "mangle",
    [
        replaced(0, Op.MKDIR),
        replaced(2, 77),
        replaced(3, 4097),
        replaced(3, 0xFFFFFFFF),
    ],
    ids=["another operation", "another transaction", "4097 bytes", "4 GiB"],
)
def test_an_answer_that_makes_no_sense_ends_the_connection(
    mangle: Callable[[bytes], bytes],
) -> None:
    @with_store(PATIENCE)
    async def check(fake: FakeXenstored, store: Store) -> None:
        fake.mangle = mangle
        (error,) = await outcomes(store.read("/tool/xenstored"))
        assert isinstance(error, XenConnectionError), error
        fake.mangle = None
        assert await store.read("/tool/xenstored") == ""
        assert store.reconnects == 1

    check()


@with_store(SHORT)
async def test_an_answer_that_nobody_asked_for_is_ignored(
    fake: FakeXenstored, store: Store
) -> None:
    fake.mangle = replaced(1, 0x7FFFFFFF)
    (error,) = await outcomes(store.read("/tool/xenstored"))
    assert isinstance(error, XenTimeoutError)
    fake.mangle = None
    assert await store.read("/tool/xenstored") == ""
    assert store.reconnects == 0


@with_store(PATIENCE)
async def test_a_connection_that_breaks_as_soon_as_its_watches_are_armed_is_left(
    fake: FakeXenstored, store: Store
) -> None:
    """Nobody would ever notice: the daemon would be deaf for good."""
    async with store.watch("/v"):

        def cut(request: Request) -> None:
            if request.op == Op.WATCH:
                fake.on_request = None
                # The answer is on its way when the connection ends.
                asyncio.get_running_loop().call_soon(fake.cut)

        fake.on_request = cut
        fake.cut()
        while fake.on_request is not None:
            await asyncio.sleep(0.01)
        while True:
            try:
                assert await store.read("/tool/xenstored") == ""
                break
            except XenConnectionError:
                await asyncio.sleep(0.01)


@with_store(PATIENCE)
async def test_reconnecting_goes_on_without_descriptors(fake: FakeXenstored, store: Store) -> None:
    """Whatever the kernel says, but for a while only."""
    assert await store.read("/tool/xenstored") == ""
    attempts = 0

    def refuse(path: str) -> Connection:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise OSError(errno.EMFILE, "too many open files")
        return connect(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xenstore, "connect", refuse)
        fake.cut()
        while store.reconnects == 0:
            await asyncio.sleep(0.01)
    assert await store.read("/tool/xenstored") == ""


@with_store(PATIENCE)
async def test_what_is_too_long_is_refused_before_it_is_sent(
    fake: FakeXenstored, store: Store
) -> None:
    before = len(fake.requests)
    (error,) = await outcomes(store.write("/v", "x" * 4096))
    assert isinstance(error, XenError)
    assert "at most 4096 bytes" in str(error)
    assert len(fake.requests) == before


class Canceller:
    """Cancels a task in the very turn of the loop in which an event comes."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None

    def changed(self, path: str) -> None:
        if self.task is not None:
            self.task.cancel()

    def failed(self, error: XenError) -> None:
        """The store was closed."""


@with_store(PATIENCE)
async def test_a_transaction_that_begins_as_its_task_is_cancelled_is_aborted(
    fake: FakeXenstored, store: Store
) -> None:
    """xenstored counts those that are open."""

    async def nothing(tx: Transaction) -> None:
        raise AssertionError("it was cancelled")

    canceller = Canceller()
    await store.subscribe("/v", canceller)
    assert await store.read("/tool/xenstored") == ""
    fake.hold()
    task = canceller.task = asyncio.create_task(store.transact(nothing))
    while not fake.waiting:
        await asyncio.sleep(0.001)
    # One read brings the client both.
    fake.answer_one()
    fake.write("/v", "")
    (error,) = await outcomes(task)
    assert isinstance(error, asyncio.CancelledError)
    fake.release()
    assert await store.read("/tool/xenstored") == ""
    asked = [(one.op, one.payload) for one in fake.requests]
    assert (Op.TRANSACTION_END, b"F\0") in asked
