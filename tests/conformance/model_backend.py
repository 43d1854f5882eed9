# SPDX-License-Identifier: MIT
"""A blkif backend in a few lines that offers everything, or breaks every rule.

It knows the protocol from blkif.h alone (`struct`, not the driver's packers), keeps the disk
in memory, and answers nothing that it is not told to: `serve` plays an honest backend, `take`
and `answer` any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

from conformance.framework_front import KIND, FrameworkEnvironment
from xenpy.gnttab import Mapping as GrantMapping
from xenpy.ring import BackRing, RingLayout
from xenpy.types import GrantRef, Port
from xenpy.xenstore import NotYet, Reader, Store, Transaction

__all__ = ["OFFERS", "ModelBackend", "Request"]

READ, WRITE, BARRIER, FLUSH, DISCARD, INDIRECT = 0, 1, 2, 3, 5, 6
OKAY, ERROR, EOPNOTSUPP = 0, -1, -2
HEADER = struct.Struct("<BBHxxxxQQ")
SEGMENT = struct.Struct("<IBBxx")
TABLES = struct.Struct("<BBHxxxxQQHxx8I")
TRIM = struct.Struct("<BBHxxxxQQQ")
REPLY = struct.Struct("<QBxhxxxx")
LAYOUT = RingLayout(request_size=112, response_size=16)

OFFERS: Mapping[str, str] = {
    "max-ring-page-order": "4",
    "multi-queue-max-queues": "4",
    "feature-max-indirect-segments": "4096",
    "feature-persistent": "1",
    "feature-flush-cache": "1",
    "feature-barrier": "1",
    "feature-discard": "1",
    "discard-secure": "1",
}


@dataclass
class Request:
    """A request as it came out of the ring.

    Attributes:
        inner: the operation that an indirect one carries, else the same as `operation`.
        segments: gref, first and last sector of each.
        flag, sectors: of a DISCARD.
    """

    queue: int
    operation: int
    inner: int
    ident: int
    sector: int
    segments: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    flag: int = 0
    sectors: int = 0


class ModelBackend:
    """One disk's backend.

    Args:
        store: the toolstack's and the backend's connection.
        sectors: of 512 bytes.
        offers: keys of its directory, from the beginning.
    """

    def __init__(
        self,
        env: FrameworkEnvironment,
        store: Store,
        *,
        sectors: int = 4096,
        devid: int = 51712,
        kind: str = KIND,
        offers: Mapping[str, str] = OFFERS,
    ) -> None:
        self.env = env
        self.store = store
        self.disk = bytearray(sectors * 512)
        self.sectors = sectors
        self.offers = dict(offers)
        self.back = f"/local/domain/{env.back_domid}/backend/{kind}/{env.front_domid}/{devid}"
        self.front = f"/local/domain/{env.front_domid}/data/xenpytest/{devid}"
        self.rings: list[BackRing] = []
        self.pages: list[GrantMapping] = []
        self.ports: list[Port] = []
        self.requests: list[Request] = []
        self.keys: dict[str, str] = {}
        self._held = ExitStack()

    # XenStore

    async def make(self, frontend: Mapping[str, str] | None = None) -> None:
        """What a toolstack writes; then InitWait."""
        back = {
            "frontend": self.front, "frontend-id": str(self.env.front_domid), "online": "1",
            **self.offers, "state": "2",
        }  # fmt: skip
        front = {
            "backend": self.back, "backend-id": str(self.env.back_domid), "state": "1",
            **(frontend or {}),
        }  # fmt: skip

        async def write(tx: Transaction) -> None:
            for path, owner, reader, keys in (
                (self.front, self.env.front_domid, self.env.back_domid, front),
                (self.back, self.env.back_domid, self.env.front_domid, back),
            ):
                await tx.mkdir(path)
                await tx.set_perms(path, f"n{owner},r{reader}")
                for key, value in keys.items():
                    await tx.write(f"{path}/{key}", value)

        await self.store.transact(write)

    async def say(self, **keys: str | int) -> None:
        """Write keys of its own directory; `_` in a name stands for `-`."""
        for key, value in keys.items():
            await self.store.write(f"{self.back}/{key.replace('_', '-')}", value)

    async def until(self, *states: str) -> None:
        """Wait for the frontend to show one of these."""

        async def look(reader: Reader) -> None:
            found = await reader.get(f"{self.front}/state")
            if found not in states:
                raise NotYet(f"{found}, not {states}")

        await self.store.wait(look, timeout=20)

    # Xen

    async def map(self) -> None:
        """Wait for the frontend's rings; map and bind them."""
        await self.until("3")
        self.keys = await self.store.read_tree(self.front, depth=2)
        domid = self.env.front_domid
        self.grants = self._held.enter_context(self.env.back_xen().open_grants())
        self.channels = self._held.enter_context(self.env.back_xen().open_evtchn())
        order = int(self.keys.get("ring-page-order", "0"))
        count = int(self.keys.get("multi-queue-num-queues", "1"))
        for queue in range(count):
            below = f"queue-{queue}/" if count > 1 else ""
            names = [f"ring-ref{n}" for n in range(1 << order)] if order else ["ring-ref"]
            refs = [GrantRef(int(self.keys[f"{below}{name}"])) for name in names]
            pages = self.grants.map(domid, refs)
            self.pages.append(pages)
            self.rings.append(BackRing(pages, LAYOUT, nr_pages=1 << order))
            remote = Port(int(self.keys[f"{below}event-channel"]))
            self.ports.append(self.channels.bind_interdomain(domid, remote))

    async def connect(self) -> None:
        """Map, and go to Connected."""
        await self.map()
        await self.say(sectors=self.sectors, sector_size=self.offers.get("sector-size", "512"))
        await self.say(state=4)
        await self.until("4")

    def release(self) -> None:
        """Let go of everything of the frontend's."""
        self._held.close()
        self.rings.clear()
        self.pages.clear()
        self.ports.clear()

    async def close(self) -> None:
        """Follow the frontend's close, let go, remove the nodes."""
        self.release()
        for path in (self.back, self.front):
            await self.store.rm(path)

    # Requests

    async def take(self, count: int = 1) -> list[Request]:
        """The next `count` requests, or more."""
        taken: list[Request] = []
        while len(taken) < count:
            for queue, ring in enumerate(self.rings):
                taken += [self._parse(queue, slot) for slot in ring.take()]
            if len(taken) < count:
                await asyncio.sleep(0.001)
        self.requests += taken
        return taken

    def _parse(self, queue: int, slot: bytes) -> Request:
        operation, count, _, ident, sector = HEADER.unpack_from(slot)
        request = Request(queue, operation, operation, ident, sector)
        if operation == INDIRECT:
            _, request.inner, count, _, _, _, *refs = TABLES.unpack_from(slot)
            for number, ref in enumerate(refs[: -(-count // 512)]):
                with self.grants.map(self.env.front_domid, [ref]) as page:
                    part = min(512, count - 512 * number)
                    with page.view(0, part * SEGMENT.size) as view:
                        request.segments += SEGMENT.iter_unpack(bytes(view))
        elif operation == DISCARD:
            _, request.flag, _, _, _, request.sectors = TRIM.unpack_from(slot)
        else:
            table = slot[HEADER.size : HEADER.size + count * SEGMENT.size]
            request.segments += SEGMENT.iter_unpack(table)
        return request

    def execute(self, request: Request) -> int:
        """Do it.  Returns the status."""
        at = request.sector * 512
        if request.operation == DISCARD:
            self.disk[at : at + request.sectors * 512] = bytes(request.sectors * 512)
            return OKAY
        for ref, first, last in request.segments:
            length = (last - first + 1) * 512
            assert first <= last <= 7, request
            assert at + length <= len(self.disk), request
            with (
                self.grants.map(self.env.front_domid, [GrantRef(ref)]) as page,
                page.view(first * 512, length) as view,
            ):
                if request.inner == READ:
                    view[:] = self.disk[at : at + length]
                else:
                    self.disk[at : at + length] = view
            at += length
        return OKAY

    def answer(
        self, request: Request, status: int = OKAY, *, ident: int | None = None,
        operation: int | None = None,
    ) -> None:  # fmt: skip
        """Answer, rightly or wrongly."""
        slot = REPLY.pack(
            request.ident if ident is None else ident,
            request.inner if operation is None else operation,
            status,
        )
        if self.rings[request.queue].push([slot]):
            self.notify(request.queue)

    def notify(self, queue: int = 0) -> None:
        self.channels.notify(self.ports[queue])

    def scribble(self, offset: int, value: int, queue: int = 0) -> None:
        """Overwrite an index of the ring: req_prod, req_event, rsp_prod, rsp_event."""
        with self.pages[queue].view(offset, 4) as view:
            struct.pack_into("<I", view, 0, value % 2**32)

    async def serve(self) -> None:
        """Be honest, for ever."""
        while True:
            for request in await self.take():
                self.answer(request, self.execute(request))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.serve())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def follow_close(self) -> None:
        """What a backend does when its frontend closes."""
        await self.until("5", "6")
        await self.say(state=5)
        await self.until("6")
        self.release()
        await self.say(state=6)
