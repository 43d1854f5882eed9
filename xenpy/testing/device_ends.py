# SPDX-License-Identifier: MIT
"""Two ends that talk through a device of their own, or through XenStore, to be measured.

`xenpy.testing.stream_ends` runs them; the backend, or whoever answers, is in domain 0.  These
are the shapes that the how-tos show, and nothing that was made to be fast.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Final, NamedTuple

from xenpy.backend import DeviceContext, NativeXen
from xenpy.byte_stream import ByteStream
from xenpy.driver import Driver
from xenpy.frontend import NativeFrontend
from xenpy.ring_backend import Backend, driver_of
from xenpy.ring_frontend import Connection, connect
from xenpy.ring_protocol import RingProtocol
from xenpy.stream_backend import StreamBackend, stream_driver_of
from xenpy.stream_frontend import connect_stream
from xenpy.stream_protocol import StreamProtocol
from xenpy.testing.world import World, device, serving
from xenpy.types import PAGE_SIZE, DomId
from xenpy.wire import i16, u16, u32, u64
from xenpy.xenstore import NotYet, Reader, Store

__all__ = ["ROLES", "Tally"]

PIECE: Final = 64 << 10
IN_FLIGHT: Final = 32
"""Requests, each with a page of its own."""
NOTE: Final = 1024
"""Bytes written into XenStore at a time: it takes no more than 2048 from a guest."""
PATIENCE: Final = 60.0


class Tally:
    """How much has come, and how fast: from the first on.

    Args:
        wanted: until there is so much.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._first = self._total = 0
        self._began = self._ended = 0.0
        self.full = asyncio.Event()

    def add(self, count: int) -> None:
        self._ended = time.perf_counter()
        if not self._total:
            self._first, self._began = count, self._ended
        self._total += count
        if self._total >= self._wanted:
            self.full.set()

    @property
    def rate(self) -> float:
        """A second; 0 if one came only."""
        seconds = self._ended - self._began
        return (self._total - self._first) / seconds if seconds else 0.0


class Ask(NamedTuple):
    id: u64
    ref: u32
    length: u16


class Answer(NamedTuple):
    id: u64
    status: i16


REQUESTS: Final = RingProtocol("bench-requests", Ask, Answer)
BYTES: Final = StreamProtocol("bench-bytes")


class Taker(Backend[Ask, Answer]):
    """Copies what a request names, if anything."""

    protocol = REQUESTS

    def __init__(self, tally: Tally, context: DeviceContext) -> None:
        super().__init__(context)
        self._tally = tally

    def handle(self, request: Ask) -> Answer:
        if request.length:
            self.read(request.ref, request.length)
        self._tally.add(request.length or 1)
        return Answer(request.id, 0)


class Hearer(StreamBackend):
    """Reads, and says it again if it is to."""

    protocol = BYTES

    def __init__(self, tally: Tally, echo: bool, context: DeviceContext) -> None:
        super().__init__(context)
        self._tally = tally
        self._echo = echo

    async def serve(self, stream: ByteStream) -> None:
        while content := await stream.read(PIECE):
            if self._echo:
                await stream.write(content)
            self._tally.add(len(content))


async def take(domid: int, _: str, count: int) -> float:
    """Answer requests until `count` bytes, or requests without, have come."""
    tally = Tally(count)
    return await _served(driver_of(partial(Taker, tally), REQUESTS), domid, tally)


async def hear(domid: int, _: str, count: int, *, echo: bool = False) -> float:
    """Read `count` bytes."""
    tally = Tally(count)
    return await _served(stream_driver_of(partial(Hearer, tally, echo), BYTES), domid, tally)


async def _served(driver: Driver, domid: int, tally: Tally) -> float:
    async with Store.open() as store:
        world = World(store, NativeXen(), NativeFrontend(), DomId(domid), lambda: 0)
        async with serving(world, driver), device(world, driver):
            await tally.full.wait()
    return tally.rate


@asynccontextmanager
async def _attached(kind: str) -> AsyncGenerator[Store]:
    """This domain's store, once there is a device in it."""

    async def there(reader: Reader) -> None:
        if not await reader.exists(f"device/{kind}/0/backend"):
            raise NotYet("no device has been attached")

    async with Store.open() as store:
        await store.wait(there, PATIENCE)
        yield store


async def ask_with_pages(_: int, __: str, count: int) -> None:
    """Hand pages over until they are `count` bytes, `IN_FLIGHT` at a time."""

    async def lane(device: Connection[Ask, Answer], idents: range) -> None:
        with device.grant(writable=False) as page:
            for ident in idents:
                await device.request(Ask(ident, page.ref, PAGE_SIZE))

    async with _attached(REQUESTS.name) as store, connect(REQUESTS, store=store) as device:
        await asyncio.gather(
            *(lane(device, range(at, count // PAGE_SIZE, IN_FLIGHT)) for at in range(IN_FLIGHT))
        )


async def ask(_: int, __: str, count: int) -> float:
    """Ask `count` times without a page, one after the other.  Returns how often a second."""
    async with _attached(REQUESTS.name) as store, connect(REQUESTS, store=store) as device:
        tally = Tally(count)
        for ident in range(count):
            await device.request(Ask(ident, 0, 0))
            tally.add(1)
    return tally.rate


async def say(_: int, __: str, count: int) -> None:
    """Write `count` bytes."""
    piece = bytes(PIECE)
    async with _attached(BYTES.name) as store, connect_stream(BYTES, store=store) as stream:
        for _at in range(0, count, PIECE):
            await stream.write(piece)


async def say_and_hear(_: int, __: str, count: int) -> float:
    """Write a byte and wait for it, `count` times.  Returns how often a second."""
    async with _attached(BYTES.name) as store, connect_stream(BYTES, store=store) as stream:
        tally = Tally(count)
        for _at in range(count):
            await stream.write(b"x")
            tally.add(len(await stream.readexactly(1)))
    return tally.rate


async def answer_notes(domid: int, path: str, count: int) -> float:
    """Answer each change of a key at `path` in another, until `count` bytes have come.

    Both are below the home of domain `domid`, which may write there.
    """
    tally, home = Tally(count), f"/local/domain/{domid}/{path}"
    async with Store.open() as store:
        await store.write(f"{home}/answer", b"")
        await store.write(f"{home}/question", b"")
        async with aclosing(_changes(store, f"{home}/question")) as questions:
            async for question in questions:
                tally.add(len(question))
                await store.write(f"{home}/answer", question[:1])
                if tally.full.is_set():
                    break
    return tally.rate


async def write_notes(_: int, path: str, count: int, *, length: int = NOTE) -> float:
    """Write notes at `path` until they are `count` bytes, each answered.  Returns bytes a
    second."""
    question = f"{path}/question"

    async def asked(reader: Reader) -> None:
        if not await reader.exists(question):
            raise NotYet("nobody answers")

    tally = Tally(count)
    async with Store.open() as store:
        await store.wait(asked, PATIENCE)
        async with aclosing(_changes(store, f"{path}/answer")) as answers:
            for at in range(0, count, length):
                # Two that follow each other must differ, or it would be no change.
                await store.write(question, (b"0", b"1")[at // length % 2] * length)
                await anext(answers)
                tally.add(length)
        # Whoever answers has ended by now; the next one must not find any of this.
        await store.rm(path)
    return tally.rate


async def _changes(store: Store, path: str) -> AsyncGenerator[bytes]:
    """What somebody writes there, if it is anything and not what was there."""
    before = b""
    async with store.watch(path) as watch:
        async for _ in watch:
            content = await store.read_bytes(path)
            if content not in (b"", before):
                before = content
                yield content


Role = Callable[[int, str, int], Awaitable[float | None]]
ROLES: Final[Mapping[str, Mapping[str, Role]]] = {
    "requests": {"sink": take, "echo": take, "source": ask_with_pages, "ping": ask},
    "bytes": {
        "sink": hear, "echo": partial(hear, echo=True), "source": say, "ping": say_and_hear,
    },
    "xenstore": {
        "sink": answer_notes, "echo": answer_notes,
        "source": write_notes, "ping": partial(write_notes, length=1),
    },
}  # fmt: skip
"""What each way does in each role; of a domain, a path in XenStore, and a count."""
