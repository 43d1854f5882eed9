# SPDX-License-Identifier: MIT
"""A further console, both ends of it ours: one suite for the fakes and for a real Xen.

A module that runs it imports every name and defines a fixture `place`: a `Place`.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from xenpy.attach import DevicePlan, attach, detach
from xenpy.backend import DeviceError, XenAccess
from xenpy.byte_stream import ByteStream
from xenpy.drivers.console.driver import DRIVER
from xenpy.drivers.console.front import ConsoleFrontend, connect
from xenpy.frontend import FrontendAccess
from xenpy.frontend_life import FrontendLife
from xenpy.service import Service
from xenpy.types import DOM0, DomId
from xenpy.xenstore import Store

PATIENCE = 60.0
DEVID = 3
KIND = "xenpy-test-console"
"""Where dom0's own hvc_xen does not look for consoles of its own."""
INDICES = 3072
"""Where in_cons, in_prod, out_cons and out_prod are in struct xencons_interface."""


class Place(Protocol):
    """Where the suite runs.

    Attributes:
        domid: the frontend's.
        back, front: how the two halves open their handles.
    """

    domid: DomId
    back: XenAccess
    front: FrontendAccess

    def store(self) -> AbstractAsyncContextManager[Store]: ...


class Console(NamedTuple):
    """A console that is served and connected.

    Attributes:
        front: the guest's end.
        service: the backend's.
        store: of both.
        frontend, backend: the two directories.
    """

    front: ByteStream
    service: Service
    store: Store
    frontend: str
    backend: str

    @property
    def stats(self) -> Mapping[str, int]:
        return self.service.devices[self.backend].stats()

    async def path(self) -> str:
        """Of the pty."""
        return await self.store.read(f"{self.frontend}/tty")


def plan(devid: int, **words: str) -> DevicePlan:
    return replace(DRIVER.plan({"devid": str(devid), **words}, DRIVER.kind), frontend_kind=KIND)


def link(place: Place, store: Store) -> AbstractAsyncContextManager[ByteStream]:
    return connect(DEVID, kind=KIND, domid=place.domid, store=store, xen=place.front)


@asynccontextmanager
async def serving(
    place: Place, options: Mapping[str, str]
) -> AsyncGenerator[tuple[Service, Store]]:
    async with place.store() as store:
        service = Service(store, DRIVER.kind, DRIVER.backend, xen=place.back, options=options)
        task = asyncio.create_task(service.run())
        try:
            yield service, store
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def console(place: Place, words: Mapping[str, str] | None = None) -> AsyncGenerator[Console]:
    async with serving(place, {}) as (service, store):
        ends = await attach(store, place.domid, plan(DEVID, **(words or {})))
        try:
            async with link(place, store) as front:
                yield Console(front, service, store, ends.frontend, ends.backend)
        finally:
            await detach(store, ends)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await main()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


class Reader:
    """A process's view of a terminal or a socket, in the event loop."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_blocking(fd, False)

    async def read(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            with suppress(BlockingIOError):
                content += os.read(self.fd, count - len(content))
            await asyncio.sleep(0.001)
        return content

    async def write(self, content: bytes) -> None:
        while content:
            with suppress(BlockingIOError):
                content = content[os.write(self.fd, content) :]
            await asyncio.sleep(0.001)


@asynccontextmanager
async def opened(path: str) -> AsyncGenerator[Reader]:
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        yield Reader(fd)
    finally:
        os.close(fd)


def connected(path: Path) -> socket.socket:
    reader = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    reader.connect(str(path))
    return reader


def noise(count: int) -> bytes:
    """Bytes of every kind, those that a terminal would act on included."""
    return random.Random(count).randbytes(count)


def test_a_pty_both_ways(place: Place) -> None:
    """More than either ring holds, and every byte as it is."""
    out, typed = noise(20_000), noise(9_000)

    async def main() -> None:
        async with console(place) as made, opened(await made.path()) as terminal:
            read, _ = await asyncio.gather(terminal.read(len(out)), made.front.write(out))
            assert read == out
            _, heard = await asyncio.gather(terminal.write(typed), hear(made, len(typed)))
            assert heard == typed
            assert (made.stats["printed"], made.stats["typed"]) == (len(out), len(typed))
            assert made.stats["lost"] == 0

    run(main)


async def hear(made: Console, count: int) -> bytes:
    heard = b""
    while len(heard) < count:
        heard += await made.front.read(100)
    return heard


def test_nobody_reads_and_the_guest_goes_on(place: Place) -> None:
    """The newest 64 KiB wait for a reader, beside what the kernel's pty holds; the rest is lost."""

    async def main() -> None:
        async with console(place) as made:
            await made.front.write(bytes(200_000))
            await made.front.write(b"the end")
            await until(lambda: made.stats["printed"] == 200_007)
            assert made.stats["lost"] > 100_000
            kept = 200_007 - made.stats["lost"]
            async with opened(await made.path()) as terminal:
                assert (await terminal.read(kept)).endswith(b"\0the end")

    run(main)


def test_a_guest_that_does_not_read_holds_up_who_types(place: Place) -> None:
    """In bounded memory; and nothing that was typed is lost."""
    typed = noise(50_000)

    async def main() -> None:
        async with console(place) as made, opened(await made.path()) as terminal:
            writing = asyncio.create_task(terminal.write(typed))
            await until(lambda: made.stats["typed"] >= 1024)
            await asyncio.sleep(0.1)
            assert not writing.done()
            assert await hear(made, len(typed)) == typed
            await writing

    run(main)


def test_several_readers_of_a_socket(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "console"

    async def main() -> None:
        async with console(place, {"path": str(path)}) as made:
            with connected(path) as one, connected(path) as another:
                readers = [Reader(reader.fileno()) for reader in (one, another)]
                # Connected is not accepted yet.
                for reader, word in zip(readers, (b"a", b"b"), strict=True):
                    await reader.write(word)
                    assert await made.front.read() == word
                await made.front.write(b"for all")
                assert [await reader.read(7) for reader in readers] == [b"for all"] * 2
                another.close()
                await made.front.write(b" and one")
                assert await readers[0].read(8) == b" and one"
            assert path.stat().st_mode & 0o777 == 0o600
        assert not path.exists()

    run(main)


def test_a_log_that_does_not_outgrow_its_bound(place: Place, tmp_path: Path) -> None:
    content = noise(10_000)

    async def main() -> None:
        options = {"log-dir": str(tmp_path), "log-size": "1000", "log-keep": "2"}
        async with serving(place, options) as (_, store):
            ends = await attach(store, place.domid, plan(DEVID, connection="none"))
            async with link(place, store) as front:
                await front.write(content)
            await detach(store, ends)

    run(main)
    name = f"console-{place.domid}-{DEVID}.log"
    files = [tmp_path / f"{name}{suffix}" for suffix in (".2", ".1", "")]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert b"".join(file.read_bytes() for file in files) == content[-3000:]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_what_was_printed_before_the_end_is_read(place: Place, tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def main() -> None:
        async with console(place, {"connection": "none", "log": str(log)}) as made:
            await made.front.write(b"last words")

    run(main)
    assert log.read_bytes() == b"last words"


def test_a_frontend_that_comes_back(place: Place, tmp_path: Path) -> None:
    """The readers stay."""

    async def main() -> None:
        async with serving(place, {}) as (service, store):
            ends = await attach(store, place.domid, plan(DEVID))
            async with opened(await store.read(f"{ends.frontend}/tty")) as terminal:
                for word in (b"one", b"two"):
                    async with link(place, store) as front:
                        await front.write(word)
                        assert await terminal.read(3) == word
            assert service.devices[ends.backend].stats()["printed"] == 6
            await detach(store, ends)

    run(main)


@pytest.mark.parametrize("connection", ["pty", "none"])
def test_where_xl_console_looks_no_guest_can_write(place: Place, connection: str) -> None:
    """XSA-57: it would have domain 0 open any file.  Also where there is none to look at, and
    where the guest has written one before."""

    async def main() -> None:
        async with console(place, {"connection": connection, "name": "agent"}) as made:
            for key in ("tty", "name"):
                perms = await made.store.get_perms(f"{made.frontend}/{key}")
                assert str(perms) == f"n{DOM0},r{place.domid}"
            assert await made.store.read(f"{made.frontend}/name") == "agent"
            assert bool(await made.path()) is (connection == "pty")

    run(main)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"path": "/nowhere/console"}, "/nowhere"),
        ({"log": "/nowhere/log"}, "/nowhere"),
    ],
)
def test_what_cannot_be_opened_is_refused(
    place: Place, words: Mapping[str, str], reason: str
) -> None:
    async def main() -> None:
        with pytest.raises(DeviceError, match=reason):
            async with console(place, words):
                pass

    run(main)


class Spoiler(ConsoleFrontend):
    """Writes what it likes."""

    def spoil(self, index: int) -> None:
        """Write nonsense into one of the four indices, and say that there is something."""
        with self.pages.view() as view:
            where = INDICES + 4 * index
            view[where : where + 4] = (1 << 31).to_bytes(4, "little")
        self.ports.notify(self.port)


@pytest.mark.parametrize("index", [0, 3], ids=["in_cons", "out_prod"])
def test_n3_indices_that_are_out_of_bounds(place: Place, index: int) -> None:
    """It costs the connection, and nothing else: a second console goes on."""

    async def main() -> None:
        async with console(place) as good:
            ends = await attach(good.store, place.domid, plan(DEVID + 1))
            life = FrontendLife(good.store, ends.frontend, Spoiler, xen=place.front)
            async with life, opened(await good.store.read(f"{ends.frontend}/tty")) as terminal:
                assert isinstance(life.device, Spoiler)
                life.device.spoil(index)
                # Whoever writes finds out that there is no room that makes sense.
                await terminal.write(b"typed")
                await to_the_end(life.device)
            assert "out of bounds" in await error_of(good.store, ends.backend)
            await detach(good.store, ends)
            await good.front.write(b"alive")
            await until(lambda: good.stats["printed"] == 5)

    run(main)


def test_e1_events_without_bytes(place: Place) -> None:
    """They cost a wake-up each, then twenty a second."""

    async def main() -> None:
        async with console(place) as made:
            ends = await attach(made.store, place.domid, plan(DEVID + 1))
            life = FrontendLife(made.store, ends.frontend, Spoiler, xen=place.front)
            async with life:
                assert isinstance(life.device, Spoiler)
                started = time.monotonic()
                for _ in range(1000):
                    life.device.ports.notify(life.device.port)
                    await asyncio.sleep(0)
                seconds = time.monotonic() - started
                wakeups = made.service.devices[ends.backend].stats()["wakeups"]
                assert wakeups <= 20 + 25 * seconds
                await made.front.write(b"alive")
                await until(lambda: made.stats["printed"] == 5)
            await detach(made.store, ends)

    run(main)


async def to_the_end(front: ConsoleFrontend) -> None:
    """Read until the backend has gone."""
    assert front.stream is not None
    while await front.stream.read():
        pass


async def error_of(store: Store, backend: str) -> str:
    home, _, rest = backend.partition("/backend/")
    return await store.read(f"{home}/error/backend/{rest}/error")
