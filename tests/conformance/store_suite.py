# SPDX-License-Identifier: MIT
"""What every xenstored must do for `xenpy.xenstore`, whichever it is and whatever the way.

Star-imported by tests/unit (the fake) and tests/xen (C xenstored, oxenstored; the socket
and /dev/xen/xenbus), which give the fixture `xenstored`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from xenpy.errors import (
    PeerError,
    StaleHandleError,
    XenConnectionError,
    XenError,
    XenNotFoundError,
    XenTimeoutError,
)
from xenpy.paths import Permissions
from xenpy.types import DOM0, DomId
from xenpy.xenstore import NotYet, Reader, Store, Transaction, Watch

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds for what is sure to come: the host may be slow."""


@dataclass
class Session:
    """One test's store, and a directory of its own in it."""

    store: Store
    base: str
    path: str
    """Socket or device."""
    is_device: bool = False
    long_directories: bool = True
    """False: the daemon refuses to list them on this transport (oxenstored, device)."""
    max_value: int = 4096
    """The daemon's quota for one value: oxenstored's is 2048, for domain 0 as well."""

    @property
    def max_payload(self) -> int:
        """Bytes of path, terminator and value; Linux's device counts the header as well."""
        return 4080 if self.is_device else 4096


class Environment(Protocol):
    """What the fixture `xenstored` gives."""

    def session(self) -> contextlib.AbstractAsyncContextManager[Session]: ...


@contextlib.asynccontextmanager
async def session_on(
    path: str,
    *,
    is_device: bool = False,
    long_directories: bool = True,
    max_value: int = 4096,
) -> AsyncIterator[Session]:
    """Connect, and clean up whatever the test has written."""
    base = f"/xenpy-test/{os.getpid()}-{time.monotonic_ns()}"
    async with Store.open(path, timeout=PATIENCE) as store:
        await store.mkdir(base)
        try:
            yield Session(store, base, path, is_device, long_directories, max_value)
        finally:
            await store.rm("/xenpy-test")


def on_store(test: Callable[[Session], Awaitable[None]]) -> Callable[[Environment], None]:
    """Make a test of an async function that takes a `Session`."""

    async def main(xenstored: Environment) -> None:
        async with asyncio.timeout(5 * PATIENCE), xenstored.session() as session:
            await test(session)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"

    def run(xenstored: Environment) -> None:
        asyncio.run(main(xenstored))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(PATIENCE):
        return await awaitable


async def until(watch: Watch, path: str) -> set[str]:
    """Events up to the one that names `path`; returns all paths seen."""
    seen: set[str] = set()
    async with asyncio.timeout(PATIENCE):
        while path not in seen:
            seen |= await anext(watch)
    return seen


# Values


@pytest.mark.parametrize(
    "value", [b"", b"x", b"\0", b"a\0b\0", bytes(range(256)), b"\xff" * 100, b" 5\n"], ids=repr
)
def test_any_bytes_come_back(xenstored: Environment, value: bytes) -> None:
    async def check(session: Session) -> None:
        await session.store.write(f"{session.base}/v", value)
        assert await session.store.read_bytes(f"{session.base}/v") == value
        text = await session.store.read(f"{session.base}/v")
        await session.store.write(f"{session.base}/w", text)
        assert await session.store.read_bytes(f"{session.base}/w") == value

    on_store(check)(xenstored)


@on_store
async def test_numbers_and_text_are_written_as_utf8(session: Session) -> None:
    await session.store.write(f"{session.base}/n", 51712)
    await session.store.write(f"{session.base}/t", "Grüße")
    assert await session.store.read(f"{session.base}/n") == "51712"
    assert await session.store.read_bytes(f"{session.base}/t") == "Grüße".encode()


@on_store
async def test_the_longest_value_fits_and_one_more_byte_does_not(session: Session) -> None:
    # Below C xenstored's limit for a node only for domain 0, which all of this runs as.
    path = f"{session.base}/v"
    longest = min(session.max_value, session.max_payload - len(path) - 1)
    await session.store.write(path, b"x" * longest)
    assert await session.store.read_bytes(path) == b"x" * longest
    with pytest.raises(XenError) as caught:
        await session.store.write(path, b"y" * (longest + 1))
    assert caught.value.errno == errno.E2BIG
    assert await session.store.read_bytes(path) == b"x" * longest


# Nodes


@on_store
async def test_a_missing_node_is_a_file_not_found(session: Session) -> None:
    path = f"{session.base}/none"
    with pytest.raises(FileNotFoundError) as caught:
        await session.store.read(path)
    assert isinstance(caught.value, XenNotFoundError)
    assert caught.value.arguments == {"path": path}
    for call in (session.store.list, session.store.get_perms, session.store.read_tree):
        with pytest.raises(XenNotFoundError):
            await call(path)
    assert await session.store.get(path) is None
    assert await session.store.get(path, "default") == "default"
    assert await session.store.exists(path) is False


@on_store
async def test_writing_makes_parents_and_removing_takes_children(session: Session) -> None:
    store, base = session.store, session.base
    await store.write(f"{base}/a/b/c", "1")
    await store.mkdir(f"{base}/a/d/e")
    await store.mkdir(f"{base}/a/d/e")
    assert sorted(await store.list(f"{base}/a")) == ["b", "d"]
    assert await store.read(f"{base}/a/b") == ""
    assert await store.list(f"{base}/a/b/c") == []
    assert await store.rm(f"{base}/a") is True
    assert await store.list(base) == []
    assert await store.exists(f"{base}/a/b/c") is False


@on_store
async def test_removing_what_is_not_there_is_harmless(session: Session) -> None:
    assert await session.store.rm(f"{session.base}/none") is True
    assert await session.store.rm(f"{session.base}/none/none/none") is False


@on_store
async def test_permissions_are_set_and_inherited(session: Session) -> None:
    store, base = session.store, session.base
    await store.mkdir(f"{base}/d")
    await store.set_perms(f"{base}/d", "n0,r3,b70,w71")
    perms = await store.get_perms(f"{base}/d")
    assert perms == Permissions.parse("n0,r3,b70,w71")
    assert [entry.domid for entry in perms] == [0, 3, 70, 71]
    await store.write(f"{base}/d/key", "")
    assert await store.get_perms(f"{base}/d/key") == perms
    # Of the owner C xenstored asks that it exists (ENOENT), so here it is domain 0.
    await store.set_perms(f"{base}/d", Permissions.parse("b0"))
    assert str(await store.get_perms(f"{base}/d")) == "b0"


@on_store
async def test_a_path_that_is_none_never_reaches_the_wire(session: Session) -> None:
    for path in ("", "a b", "/x\0/y", "/x//y", "/x/", "/" + "x" * 3072, "x" * 2049, "@foo bar"):
        with pytest.raises(XenError) as caught:
            await session.store.write(path, "1")
        assert caught.value.errno == errno.EINVAL


@on_store
async def test_a_relative_path_begins_at_our_own_domain(session: Session) -> None:
    name = "xenpy-test-relative"
    await session.store.write(name, "here")
    try:
        home = await session.store.get_domain_path(await session.store.domid())
        assert await session.store.read(f"{home}/{name}") == "here"
        async with session.store.watch(name) as watch:
            assert await soon(anext(watch)) == {name}
            await session.store.write(f"{name}/below", "1")
            assert f"{name}/below" in await until(watch, f"{name}/below")
    finally:
        await session.store.rm(name)


@on_store
async def test_domains_are_known(session: Session) -> None:
    assert await session.store.domid() == DOM0
    assert await session.store.is_domain_introduced(DOM0) is True
    assert await session.store.is_domain_introduced(DomId(32000)) is False
    assert await session.store.get_domain_path(DomId(7)) == "/local/domain/7"


# Directories


async def _fill(session: Session, path: str, count: int) -> set[str]:
    names = {f"entry-with-a-long-name-{number:05}" for number in range(count)}
    await asyncio.gather(*(session.store.write(f"{path}/{name}", "") for name in names))
    return names


@on_store
async def test_a_directory_over_4_kib_is_listed_whole(session: Session) -> None:
    names = await _fill(session, f"{session.base}/big", 400)
    if not session.long_directories:
        with pytest.raises(XenError) as caught:
            await session.store.list(f"{session.base}/big")
        assert caught.value.errno == errno.E2BIG
        return
    listed = await session.store.list(f"{session.base}/big")
    assert len(listed) == len(names)
    assert set(listed) == names


@pytest.mark.parametrize("length", range(4090, 4100))
def test_a_directory_of_just_one_packet_is_listed_whole(
    xenstored: Environment, length: int
) -> None:
    """Around 4096 bytes, where one daemon or the other begins to do something else."""

    async def check(session: Session) -> None:
        path = f"{session.base}/d"
        names = {f"{number:0127}" for number in range(length // 128)}
        rest = length - 128 * len(names)
        names.add("x" * (rest - 1) if rest > 1 else "x" * 5)
        await asyncio.gather(*(session.store.write(f"{path}/{name}", "") for name in names))
        if session.long_directories or sum(len(name) + 1 for name in names) <= 4096:
            assert set(await session.store.list(path)) == names

    on_store(check)(xenstored)


@on_store
async def test_a_tree_is_read_to_its_depth_and_not_past_its_limit(session: Session) -> None:
    store, base = session.store, session.base
    keys = {"state": "4", "ring-ref": "8", "queue-0": "", "queue-0/ring-ref": "9", "empty": ""}
    for name, value in keys.items():
        await store.write(f"{base}/dev/{name}", value)
    await store.write(f"{base}/dev/queue-0/deep/er", "")
    one = {name: value for name, value in keys.items() if "/" not in name}
    assert await store.read_tree(f"{base}/dev") == one
    assert await store.read_tree(f"{base}/dev", depth=2) == keys | {"queue-0/deep": ""}
    assert await store.read_tree(f"{base}/dev", limit=4) == one
    for depth, limit in ((1, 3), (2, 5)):
        with pytest.raises(PeerError, match="more than"):
            await store.read_tree(f"{base}/dev", depth=depth, limit=limit)


# Many at once


@on_store
async def test_a_thousand_requests_in_flight_get_their_own_answers(session: Session) -> None:
    paths = [f"{session.base}/{number}" for number in range(1000)]
    await asyncio.gather(*(session.store.write(path, path) for path in paths))
    assert await asyncio.gather(*(session.store.read(path) for path in paths)) == paths


@on_store
async def test_a_cancelled_request_harms_no_other(session: Session) -> None:
    await session.store.write(f"{session.base}/v", "1")
    tasks = [asyncio.create_task(session.store.read(f"{session.base}/v")) for _ in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[1::2] == ["1"] * 25
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert await session.store.read(f"{session.base}/v") == "1"


# Transactions


@on_store
async def test_a_transaction_is_seen_when_it_is_over(session: Session) -> None:
    store, base = session.store, session.base
    await store.write(f"{base}/a", "old")

    async def fn(tx: Transaction) -> str:
        await tx.write(f"{base}/a", "new")
        await tx.write(f"{base}/b/c", "made")
        assert await tx.read(f"{base}/a") == "new"
        assert await tx.list(f"{base}/b") == ["c"]
        assert await store.read(f"{base}/a") == "old"
        assert await store.exists(f"{base}/b") is False
        return "done"

    assert await store.transact(fn) == "done"
    assert await store.read(f"{base}/a") == "new"
    assert await store.read(f"{base}/b/c") == "made"


@on_store
async def test_a_transaction_that_raises_changes_nothing(session: Session) -> None:
    store, base = session.store, session.base
    kept: list[Transaction] = []

    async def fn(tx: Transaction) -> None:
        kept.append(tx)
        await tx.write(f"{base}/a", "1")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await store.transact(fn)
    assert await store.exists(f"{base}/a") is False
    with pytest.raises(StaleHandleError):
        await kept[0].write(f"{base}/a", "1")


@on_store
async def test_a_conflict_runs_it_again(session: Session) -> None:
    store, base = session.store, session.base
    await store.write(f"{base}/n", 0)
    runs = 0

    async def fn(tx: Transaction) -> int:
        nonlocal runs
        runs += 1
        number = int(await tx.read(f"{base}/n"))
        if runs < 3:
            await store.write(f"{base}/n", number + 10)  # somebody else
        await tx.write(f"{base}/n", number + 1)
        return number

    assert await store.transact(fn) == 20
    assert await store.read(f"{base}/n") == "21"
    assert runs == 3


@on_store
async def test_a_conflict_every_time_ends(session: Session) -> None:
    store, base = session.store, session.base
    runs = 0

    async def fn(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.get(f"{base}/n")
        await store.write(f"{base}/n", runs)
        await tx.write(f"{base}/n", "mine")

    with pytest.raises(XenError) as caught:
        await store.transact(fn, attempts=5)
    assert caught.value.errno == errno.EAGAIN
    assert runs == 5
    assert await store.read(f"{base}/n") == "5"


@on_store
async def test_many_transactions_add_up(session: Session) -> None:
    store, base = session.store, session.base
    await store.write(f"{base}/n", 0)

    async def fn(tx: Transaction) -> None:
        await tx.write(f"{base}/n", int(await tx.read(f"{base}/n")) + 1)

    await asyncio.gather(*(store.transact(fn, attempts=200) for _ in range(8)))
    assert await store.read(f"{base}/n") == "8"


# Watches


@on_store
async def test_a_watch_tells_first_of_itself_then_of_changes(session: Session) -> None:
    store, base = session.store, session.base
    async with store.watch(f"{base}/dir") as watch:
        assert await soon(anext(watch)) == {f"{base}/dir"}
        await store.write(f"{base}/dir/a/b", "1")
        assert f"{base}/dir/a/b" in await until(watch, f"{base}/dir/a/b")
        await store.write(f"{base}/director", "1")
        await store.write(f"{base}/dir/a/b", "2")
        assert f"{base}/director" not in await until(watch, f"{base}/dir/a/b")
        await store.rm(f"{base}/dir/a")
        await until(watch, f"{base}/dir/a")


@on_store
async def test_a_watch_sees_its_node_go_with_the_one_above(session: Session) -> None:
    store, base = session.store, session.base
    await store.write(f"{base}/x/y/state", "4")
    async with store.watch(f"{base}/x/y/state") as watch:
        await soon(anext(watch))
        await store.rm(f"{base}/x")
        await until(watch, f"{base}/x/y/state")
        assert await store.exists(f"{base}/x/y/state") is False


@on_store
async def test_a_watch_sees_a_transaction_when_it_is_over(session: Session) -> None:
    store, base = session.store, session.base

    async def fn(tx: Transaction) -> None:
        await tx.write(f"{base}/d/one", "1")
        await tx.write(f"{base}/d/two", "2")

    async with store.watch(f"{base}/d") as watch:
        assert await soon(anext(watch)) == {f"{base}/d"}
        await store.transact(fn)
        await until(watch, f"{base}/d/two")
        assert await store.read(f"{base}/d/two") == "2"


@on_store
async def test_changes_are_coalesced_while_nobody_looks(session: Session) -> None:
    store, base = session.store, session.base
    async with store.watch(f"{base}/d") as watch, store.watch(f"{base}/end") as end:
        await soon(anext(watch))
        await soon(anext(end))
        for number in range(100):
            await store.write(f"{base}/d/{number % 3}", number)
        await store.write(f"{base}/end", "")
        await until(end, f"{base}/end")  # events come in order
        seen = await soon(anext(watch))
        assert {f"{base}/d/{number}" for number in range(3)} <= seen
        assert len(seen) <= 4
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(watch)


@on_store
async def test_two_watches_on_one_path_live_their_own_lives(session: Session) -> None:
    store, path = session.store, f"{session.base}/v"
    async with store.watch(path) as first:
        async with store.watch(path) as second:
            await soon(anext(first))
            await soon(anext(second))
            await store.write(path, "1")
            await until(second, path)
            await until(first, path)
        await store.write(path, "2")
        await until(first, path)
    async with store.watch(path) as again:
        assert await soon(anext(again)) == {path}


@on_store
async def test_special_watches_are_taken(session: Session) -> None:
    for name in ("@releaseDomain", "@introduceDomain"):
        async with session.store.watch(name) as watch:
            assert await soon(anext(watch)) == {name}
    with pytest.raises(XenError):
        session.store.watch("@no such thing")


# Waiting


@on_store
async def test_waiting_ends_when_all_that_was_asked_is_there(session: Session) -> None:
    store, base = session.store, session.base

    async def ready(reader: Reader) -> tuple[str, str]:
        ring = await reader.get(f"{base}/ring-ref")
        state = await reader.get(f"{base}/state")
        if ring is None or state != "3":
            raise NotYet(f"state is {state}")
        return ring, state

    waiting = asyncio.create_task(store.wait(ready, timeout=PATIENCE))
    await store.write(f"{base}/ring-ref", 8)
    await store.write(f"{base}/state", 2)
    await store.write(f"{base}/state", 3)
    assert await soon(waiting) == ("8", "3")
    assert await store.wait(ready) == ("8", "3")


@on_store
async def test_waiting_in_vain_says_for_what(session: Session) -> None:
    async def never(reader: Reader) -> None:
        raise NotYet(f"state is {await reader.get(f'{session.base}/state')}")

    with pytest.raises(XenTimeoutError, match="state is None"):
        await session.store.wait(never, timeout=2.0)


@on_store
async def test_an_error_ends_the_waiting(session: Session) -> None:
    async def broken(reader: Reader) -> None:
        await reader.read(f"{session.base}/none")

    with pytest.raises(XenNotFoundError):
        await session.store.wait(broken, timeout=PATIENCE)


# The connection


class Proxy:
    """A socket in front of xenstored's that can stop passing bytes on, and break."""

    def __init__(self, target: str, path: Path) -> None:
        self._target = target
        self.path = str(path)
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.connections = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Proxy:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, self.path)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        while self._tasks:
            await asyncio.wait(self._tasks)
            await asyncio.sleep(0)
        Path(self.path).unlink(missing_ok=True)

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        self._writers += [writer, far_writer]
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await source.read(7):  # cuts every header
                await self.flowing.wait()
                sink.write(data)
                await sink.drain()
        sink.transport.abort()


def test_a_cut_connection_fails_what_is_in_flight_and_mends_itself(
    xenstored: Environment, tmp_path: Path
) -> None:
    async def check(session: Session) -> None:
        if session.is_device:
            return  # the kernel's device cannot be cut: there is nothing between
        base = session.base
        async with (
            Proxy(session.path, tmp_path / "proxy") as proxy,
            Store.open(proxy.path, timeout=2.0) as store,
        ):
            told: list[int] = []
            store.on_reconnect.append(lambda: told.append(1))
            async with contextlib.AsyncExitStack() as stack:
                watches = [
                    await stack.enter_async_context(store.watch(f"{base}/{number}"))
                    for number in range(10)
                ]
                for watch in watches:
                    await soon(anext(watch))
                proxy.flowing.clear()
                reads = [asyncio.create_task(store.read(base)) for _ in range(5)]
                await asyncio.sleep(0.05)
                proxy.cut()
                started = time.monotonic()
                results = await asyncio.gather(*reads, return_exceptions=True)
                assert time.monotonic() - started < store.timeout
                assert [type(result) for result in results] == [XenConnectionError] * 5
                proxy.flowing.set()
                # Everybody is told to look again, and hears what comes after.
                for number, watch in enumerate(watches):
                    await until(watch, f"{base}/{number}")
                assert await store.read(base) == ""
                assert proxy.connections == 2
                assert told == [1]
                assert store.reconnects == 1
                for number, watch in enumerate(watches):
                    await session.store.write(f"{base}/{number}/x", "1")
                    await until(watch, f"{base}/{number}/x")

    on_store(check)(xenstored)


def test_a_transaction_does_not_survive_its_connection(
    xenstored: Environment, tmp_path: Path
) -> None:
    async def check(session: Session) -> None:
        if session.is_device:
            return
        async with (
            Proxy(session.path, tmp_path / "proxy") as proxy,
            Store.open(proxy.path, timeout=2.0) as store,
        ):

            async def fn(tx: Transaction) -> None:
                await tx.write(f"{session.base}/v", "1")
                proxy.cut()
                await tx.write(f"{session.base}/w", "1")

            with pytest.raises(XenConnectionError):
                await store.transact(fn)
            await soon(store.read(session.base))
            assert await session.store.list(session.base) == []

    on_store(check)(xenstored)


def test_waiting_goes_on_over_a_reconnect(xenstored: Environment, tmp_path: Path) -> None:
    async def check(session: Session) -> None:
        if session.is_device:
            return
        path = f"{session.base}/state"

        async def ready(reader: Reader) -> str:
            state = await reader.get(path)
            if state != "4":
                asked.set()
                raise NotYet
            return state

        async with (
            Proxy(session.path, tmp_path / "proxy") as proxy,
            Store.open(proxy.path, timeout=PATIENCE) as store,
        ):
            asked = asyncio.Event()
            waiting = asyncio.create_task(store.wait(ready, timeout=PATIENCE))
            await soon(asked.wait())
            await proxy.stop()
            await session.store.write(path, "4")  # nobody is there to tell
            await proxy.start()
            assert await soon(waiting) == "4"

    on_store(check)(xenstored)


@on_store
async def test_closing_ends_watches_and_is_harmless_twice(session: Session) -> None:
    async with Store.open(session.path) as store:
        watch = store.watch(session.base)
        await watch.__aenter__()
        await soon(anext(watch))
        waiting = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StaleHandleError):
            await soon(waiting)
        await watch.__aexit__(None, None, None)
        await store.close()
        for call in (store.read(session.base), store.transact(_nothing)):
            with pytest.raises(StaleHandleError):
                await call


async def _nothing(tx: Transaction) -> None:
    return None
