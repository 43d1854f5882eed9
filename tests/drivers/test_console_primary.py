# SPDX-License-Identifier: MIT
"""A guest's first console, taken over and handed back, over the fakes and a fake xenconsoled."""

from __future__ import annotations

import asyncio
import errno
import os
import tty
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from xenpy.drivers.console import primary as taking
from xenpy.drivers.console.every import EveryConsole
from xenpy.drivers.console.hub import Hub
from xenpy.drivers.console.link import Link
from xenpy.drivers.console.primary import Primary, give_back
from xenpy.drivers.console.primary_nodes import console_path
from xenpy.drivers.console.protocol import RESERVED_CONSOLE, ConsoleRing
from xenpy.drivers.console.session import primary
from xenpy.drivers.console.settings import LogSettings
from xenpy.errors import PeerError, XenError, XenNotFoundError
from xenpy.evtchn import EventChannels
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DOM0, DomId, Port
from xenpy.xenstore import Store

GUEST = DomId(7)
CONSOLE = console_path(GUEST)
THEIR_TTY = "/dev/pts/99"


class Guest:
    """A guest's end: its page, its port, and the nodes that the toolstack makes for it."""

    def __init__(self, xen: FakeXen, store: Store) -> None:
        self._xen, self._store = xen, store
        domain = xen.domain(GUEST)
        self._share, self.channels = domain.open_share(), domain.open_evtchn()
        self.pages = self._share.share(DOM0, 1)
        with self.pages.view() as view:
            # As libxc makes it since Xen 4.21: XENCONSOLE_DISCONNECTED.
            view[3088] = 1
        xen.grants.reserve(GUEST, self.pages.refs[0], RESERVED_CONSOLE)
        self.port = self.channels.bind_unbound(DOM0)
        self.ring = ConsoleRing.frontend(self.pages)

    async def publish(self) -> None:
        keys = {
            "ring-ref": 123456, "type": "xenconsoled", "tty": "", "port": int(self.port),
            "backend-id": 0,
        }  # fmt: skip
        for key, value in keys.items():
            await self._store.write(f"{CONSOLE}/{key}", value)

    def print(self, content: bytes) -> None:
        assert self.ring.put.write(content) == len(content)
        self.channels.notify(self.port)

    def close(self) -> None:
        for held in (self.pages, self._share, self.channels):
            held.close()


class Xenconsoled:
    """What xenconsoled does with these nodes, console_create_ring, and no more.

    Attributes:
        read: what it got out of the ring.
    """

    def __init__(self, xen: FakeXen, store: Store) -> None:
        self._domain, self._store = xen.domain(DOM0), store
        self._grants = self._domain.open_grants()
        self._page = self._grants.map(GUEST, [RESERVED_CONSOLE])
        self._channels: EventChannels | None = None
        self._port = Port(0)
        self._bound = Port(0)
        self._task = asyncio.create_task(self._watch())
        self.read = b""

    @property
    def serves(self) -> bool:
        return self._channels is not None

    async def _watch(self) -> None:
        async with self._store.watch(CONSOLE) as watch:
            async for _ in watch:
                await self._look()

    async def _look(self) -> None:
        port = Port(int(await self._store.read(f"{CONSOLE}/port")))
        if await self._store.read(f"{CONSOLE}/type") != "xenconsoled":
            return
        if self.serves and port == self._port:
            return
        self._let_go()
        channels = self._domain.open_evtchn()
        try:
            self._bound = channels.bind_interdomain(GUEST, port)
        except XenError:
            channels.close()
            return
        self._channels, self._port = channels, port
        self.drain()
        if not await self._store.read(f"{CONSOLE}/tty"):
            await self._store.write(f"{CONSOLE}/tty", THEIR_TTY)

    def drain(self) -> None:
        """Read what is there."""
        self.read += ConsoleRing.backend(self._page).taken.read()

    def _let_go(self) -> None:
        channels, self._channels = self._channels, None
        if channels is not None:
            channels.close()

    async def stop(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._let_go()
        self._page.close()
        self._grants.close()


class World:
    """Everything, for a test."""

    def __init__(self, xen: FakeXen, fake: FakeXenstored, store: Store) -> None:
        self.xen, self.fake, self.store = xen, fake, store
        self.dom0 = xen.domain(DOM0)
        self.guest = Guest(xen, store)
        self.hub = Hub()

    def take(self, tty: str | None = None) -> Primary:
        return Primary(self.store, GUEST, self.hub, tty, self.dom0)

    async def keys(self) -> dict[str, str]:
        return dict(await self.store.read_tree(CONSOLE, depth=1, limit=32))


@asynccontextmanager
async def world() -> AsyncGenerator[World]:
    xen = FakeXen()
    async with FakeXenstored() as fake, Store.open(fake.path) as store:
        fake.introduce(GUEST)
        made = World(xen, fake, store)
        await made.guest.publish()
        try:
            yield made
        finally:
            made.guest.close()
    assert not any(xen.census().values()), xen.census()
    xen.close()


@asynccontextmanager
async def xenconsoled(made: World) -> AsyncGenerator[Xenconsoled]:
    daemon = Xenconsoled(made.xen, made.store)
    try:
        await until(lambda: daemon.serves)
        yield daemon
    finally:
        await daemon.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def run(main: Callable[[World], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60), world() as made:
            await main(made)

    asyncio.run(bounded())


def test_taken_and_handed_back_and_no_byte_is_lost() -> None:
    async def main(made: World) -> None:
        guest = made.guest
        async with xenconsoled(made) as theirs:
            before = await made.keys()
            guest.print(b"one ")
            theirs.drain()
            guest.print(b"two ")
            async with primary(GUEST, made.store, made.dom0) as session:
                assert not theirs.serves
                guest.print(b"three ")
                assert await session.until("three ") == b"two three "
                session.type("typed\n")
                assert guest.ring.taken.read() == b"typed\n"
                assert (await made.keys())["type"] == "xenpy"
            await until(lambda: theirs.serves)
            guest.print(b"four")
            theirs.drain()
            assert theirs.read == b"one four"
            assert await made.keys() == before

    run(main)


def test_without_xenconsoled() -> None:
    async def main(made: World) -> None:
        async with made.take("/dev/pts/5"):
            assert (await made.keys())["tty"] == "/dev/pts/5"
            with made.guest.pages.view() as view:
                assert view[3088] == 0
        keys = await made.keys()
        assert (keys["type"], keys["tty"]) == ("xenconsoled", "")

    run(main)


def test_what_is_in_the_ring_at_the_end_is_read() -> None:
    """Although nobody has said so."""

    async def main(made: World) -> None:
        async with made.take():
            made.guest.ring.put.write(b"last words")
        assert made.hub.printed == 10

    run(main)


def test_one_that_does_not_let_go_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "LET_GO", 0.1)

    async def main(made: World) -> None:
        before = await made.keys()
        channels = made.dom0.open_evtchn()
        channels.bind_interdomain(GUEST, made.guest.port)
        with pytest.raises(XenError, match="let go"):
            async with made.take():
                pass
        assert await made.keys() == before
        channels.close()

    run(main)


def test_two_takers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second gets nothing, and the first keeps it."""
    monkeypatch.setattr(taking, "LET_GO", 0.1)

    async def main(made: World) -> None:
        async with made.take():
            taken = await made.keys()
            with pytest.raises(XenError, match="let go"):
                async with made.take():
                    pass
            assert await made.keys() == taken

    run(main)


@pytest.mark.parametrize("claimed", [False, True], ids=["while taking", "when taken"])
def test_a_taker_that_was_killed(claimed: bool) -> None:
    """The next takes it, and then xenconsoled has it back; so does give_back alone."""

    async def main(made: World) -> None:
        async with xenconsoled(made) as theirs:
            before = await made.keys()
            for again in (True, False):
                # As a killed one leaves it.
                await made.store.write(f"{CONSOLE}/xenpy-saved-port", int(made.guest.port))
                await made.store.write(f"{CONSOLE}/xenpy-saved-tty", THEIR_TTY)
                await made.store.write(f"{CONSOLE}/xenpy-owner", "dead")
                await made.store.write(f"{CONSOLE}/port", 0)
                await until(lambda: not theirs.serves)
                if claimed:
                    await made.store.write(f"{CONSOLE}/type", "xenpy")
                    await made.store.write(f"{CONSOLE}/port", int(made.guest.port))
                if again:
                    async with made.take():
                        pass
                else:
                    assert await give_back(made.store, GUEST, xen=made.dom0)
                await until(lambda: theirs.serves)
                assert await made.keys() == before
            assert not await give_back(made.store, GUEST, xen=made.dom0)

    run(main)


def test_no_such_guest() -> None:
    async def main(made: World) -> None:
        with pytest.raises(XenNotFoundError, match="no such guest"):
            async with Primary(made.store, DomId(8), Hub(), xen=made.dom0):
                pass

    run(main)


@pytest.mark.parametrize(("key", "value"), [("type", "ioemu"), ("backend-id", "3")])
def test_a_console_that_is_not_xenconsoled_s(key: str, value: str) -> None:
    """A QEMU's, or another domain's: it is left as it is."""

    async def main(made: World) -> None:
        await made.store.write(f"{CONSOLE}/{key}", value)
        before = await made.keys()
        with pytest.raises(XenError, match="its server is"):
            async with made.take():
                pass
        assert await made.keys() == before

    run(main)


def test_a_taker_that_lives_keeps_it() -> None:
    async def main(made: World) -> None:
        async with made.take() as console:
            taken = await made.keys()
            with pytest.raises(XenError, match="alive"):
                await give_back(made.store, GUEST, xen=made.dom0)
            assert await made.keys() == taken
            ended = asyncio.ensure_future(console.ended())
            await asyncio.sleep(0.01)
            await made.store.write(f"{CONSOLE}/xenpy-owner", "another")
            with pytest.raises(XenError, match="another has it"):
                await ended
            await made.store.write(f"{CONSOLE}/xenpy-saved-port", "9")
        # It is another's, who hands it back.
        assert (await made.keys())["xenpy-saved-port"] == "9"

    run(main)


def test_a_guest_that_dies_while_its_console_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is written anew."""

    async def main(made: World) -> None:
        bind = Primary._bind

        def dies(self: Primary, port: Port) -> Link | None:
            link = bind(self, port)
            made.fake.tree.rm(CONSOLE)
            return link

        monkeypatch.setattr(Primary, "_bind", dies)
        with pytest.raises(XenNotFoundError):
            async with made.take():
                pass
        assert not await made.store.exists(CONSOLE)

    run(main)


@pytest.mark.parametrize("turns", range(0, 120, 5))
def test_whoever_is_cancelled_hands_it_back(turns: int) -> None:
    """At whatever moment."""

    async def main(made: World) -> None:
        async with xenconsoled(made) as theirs:
            before = await made.keys()

            async def take() -> None:
                async with made.take("/dev/pts/5"):
                    await asyncio.sleep(60)

            taking = asyncio.ensure_future(take())
            for _ in range(turns):
                await asyncio.sleep(0)
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
            await until(lambda: theirs.serves)
            assert await made.keys() == before

    run(main)


def test_a_pty_of_xenconsoled_s_stands_still_meanwhile() -> None:
    """What is typed there would kill it."""

    async def main(made: World) -> None:
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        os.set_blocking(slave, False)
        await made.store.write(f"{CONSOLE}/tty", os.ttyname(slave))
        async with xenconsoled(made):
            async with made.take():
                with pytest.raises(BlockingIOError):
                    os.write(slave, b"deadly")
                with pytest.raises(BlockingIOError):
                    os.read(master, 100)
            os.write(slave, b"harmless")
            assert os.read(master, 100) == b"harmless"
        os.close(master)
        os.close(slave)

    run(main)


@pytest.mark.parametrize("nonsense", ["", "x", "-1", "4294967296"])
def test_nodes_that_make_no_sense(nonsense: str) -> None:
    async def main(made: World) -> None:
        await made.store.write(f"{CONSOLE}/port", nonsense)
        with pytest.raises(PeerError, match="port"):
            async with made.take():
                pass

    run(main)


def test_it_ends_with_the_guest_or_with_its_nonsense() -> None:
    async def main(made: World) -> None:
        async with made.take() as console:
            ended = asyncio.ensure_future(console.ended())
            with made.guest.pages.view() as view:
                view[3084:3088] = b"\xff\xff\xff\x7f"
            made.guest.channels.notify(made.guest.port)
            with pytest.raises(PeerError, match="out of bounds"):
                await ended
            with made.guest.pages.view() as view:
                view[3084:3088] = bytes(4)
        async with made.take() as console:
            ended = asyncio.ensure_future(console.ended())
            await asyncio.sleep(0.01)
            assert not ended.done()
            made.fake.release_domain(GUEST)
            await ended

    run(main)


def test_the_store_s_own_error_ends_the_service_of_every_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a group of errors, which nobody who runs it knows what to do with."""

    async def main(made: World) -> None:
        async def refuse(path: str) -> list[str]:
            raise XenError(errno.EACCES, "list", path=path)

        monkeypatch.setattr(made.store, "list", refuse)
        with pytest.raises(XenError) as caught:
            await EveryConsole(made.store, LogSettings(tmp_path), made.dom0).run()
        assert caught.value.errno == errno.EACCES

    run(main)


def test_every_console_has_a_pty_and_a_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That of a guest that was there, and of one that comes; and both are handed back."""

    async def main(made: World) -> None:
        await made.store.write(f"/local/domain/{GUEST}/name", "web")
        every = EveryConsole(made.store, LogSettings(tmp_path), made.dom0)
        serving = asyncio.create_task(every.run())
        made.guest.print(b"booted")
        log = tmp_path / "guest-web.log"
        await until(lambda: log.exists() and log.read_bytes() == b"booted")
        while (await made.keys())["type"] != "xenpy":
            await asyncio.sleep(0.005)
        where = (await made.keys())["tty"]
        assert Path(where).is_char_device()
        late = DomId(9)
        made.fake.introduce(late)
        # Its nodes come after it, and may never make sense.
        await made.store.write(f"{console_path(late)}/ring-ref", 1)
        await made.store.write(f"{console_path(late)}/type", "xenconsoled")
        await made.store.write(f"{console_path(late)}/port", "none")
        await until(lambda: "not a number" in caplog.text)
        assert list(every.hubs) == [GUEST]
        made.fake.release_domain(GUEST)
        await until(lambda: GUEST not in every.hubs)
        assert not Path(where).exists()
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving

    run(main)
