# SPDX-License-Identifier: MIT
"""One blkif ring of a frontend: room, requests in flight, and their answers.

A request's pages are its own until the backend has answered, whoever still waits for it: a
late answer finds them where the request put them.  Ids are never used twice, so that an
answer to anything that is not in flight is known for what it is.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from xenpy.drivers.block.front_pages import PagePool
from xenpy.drivers.block.front_protocol import indirect_pages, segments
from xenpy.drivers.block.protocol import (
    ABI_NATIVE,
    DISCARD_SECURE,
    OP_DISCARD,
    OPERATION_NAMES,
    RSP_EOPNOTSUPP,
    RSP_ERROR,
    RSP_OKAY,
    SECTOR_SHIFT,
    SEGMENTS_PER_PAGE,
)
from xenpy.errors import PeerError, XenError
from xenpy.gnttab import GrantShare
from xenpy.ports import Ports
from xenpy.ring import FrontRing
from xenpy.types import PAGE_SIZE, DomId

__all__ = ["ERRORS", "FrontQueue", "Shape"]

ERRORS: Final = {RSP_ERROR: errno.EIO, RSP_EOPNOTSUPP: errno.EOPNOTSUPP}
"""What a caller is told of a status."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A request as it stood in some ring, right or wrong.

    Attributes:
        operation: of an indirect request the one inside.
        sector, sectors: as in the slot; `sectors` of a discard only.
        spans: first and last sector of each page.
        nr_segments: as in the slot.
        indirect: whether the segments are in pages of their own.
        flag: of a discard.
    """

    operation: int
    sector: int
    spans: Sequence[tuple[int, int]] = ()
    nr_segments: int = 0
    indirect: bool = False
    sectors: int = 0
    flag: int = 0


@dataclass(eq=False, slots=True)
class _Flight:
    """A request that the backend has.

    Attributes:
        operation: what was asked for.
        answered_as: the operations that an answer may name.
        sector: where.
        pages: of the pool.
        into: where what was read goes.
        answer: done, or cancelled by whoever waited and does not any more.
    """

    operation: int
    answered_as: tuple[int, ...]
    sector: int
    pages: list[int]
    into: memoryview | None
    answer: asyncio.Future[None]


class FrontQueue:
    """A ring, its port and its pages.

    Args:
        share: where pages come from.
        ports: where the port comes from.
        peer: the backend's domain.
        nr_pages: of the ring: 1, 2, 4, 8 or 16.
        data_pages: for what is read and written.
        fail: called once, when the backend has broken the protocol.
    """

    def __init__(
        self,
        share: GrantShare,
        ports: Ports,
        peer: DomId,
        *,
        nr_pages: int,
        data_pages: int,
        fail: Callable[[Exception], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._ports = ports
        self._fail = fail
        self.port = ports.listen(peer, self._serve)
        self._ring_pages = share.share(peer, nr_pages)
        self._ring = FrontRing(self._ring_pages, ABI_NATIVE.layout, nr_pages=nr_pages)
        self.ring_refs = self._ring_pages.refs
        # Last: its view would keep `share` from closing if anything after it failed.
        self.pool = PagePool(share, peer, data_pages)
        self._used = 0
        self._flights: dict[int, _Flight] = {}
        self._waiting: deque[tuple[int, asyncio.Future[list[int]]]] = deque()
        self._slots: list[bytes] = []
        self._next_id = 0
        self._over: Exception | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """Requests that the backend has, or that are about to be put."""
        return self._used

    @property
    def depth(self) -> int:
        """How many requests the ring takes."""
        return self._ring.entries

    async def transfer(
        self,
        operation: int,
        offset: int,
        *,
        content: memoryview | None = None,
        into: memoryview | None = None,
    ) -> asyncio.Future[None]:
        """Put a READ or WRITE, once there is room.

        Args:
            offset: on the disk, in bytes.
            content: what to write; copied before this returns.
            into: where to put what was read; not touched once the answer is cancelled.

        Returns:
            The answer.  It raises XenError: EIO, EOPNOTSUPP.
        """
        length = len(content) if content is not None else len(into or b"")
        count = -(-length // PAGE_SIZE)
        extra = indirect_pages(count)
        pages = await self._room(count + extra)
        data, tables = pages[:count], pages[count:]
        if content is not None:
            self.pool.fill(data, content)
        parts = segments(self.pool.refs(data), length)
        sector, ident = offset >> SECTOR_SHIFT, self._new_id()
        if tables:
            slot = self._indirect(operation, ident, sector, parts, tables)
        else:
            slot = ABI_NATIVE.pack_request(operation, ident, sector, parts)
        return self._put(ident, slot, operation, sector, pages, into)

    def _indirect(
        self,
        operation: int,
        ident: int,
        sector: int,
        parts: Sequence[tuple[int, int, int]],
        tables: Sequence[int],
    ) -> bytes:
        for number, page in enumerate(tables):
            first = number * SEGMENTS_PER_PAGE
            table = ABI_NATIVE.pack_segments(parts[first : first + SEGMENTS_PER_PAGE])
            self.pool.fill([page], memoryview(table))
        refs = self.pool.refs(tables)
        return ABI_NATIVE.pack_indirect(operation, ident, sector, len(parts), refs)

    async def repeat(self, shape: Shape) -> asyncio.Future[None]:
        """Put a request of any shape, such as another frontend once put; nothing is checked.  What
        it writes is the number of its sector, over and over.

        Returns:
            The answer, as of `transfer`.
        """
        count = len(shape.spans)
        tables = -(-count // SEGMENTS_PER_PAGE) if shape.indirect else 0
        pages = await self._room(count + tables)
        ident, sector = self._new_id(), shape.sector
        data = pages[:count]
        pattern = sector.to_bytes(8, "little") * (PAGE_SIZE // 8 * count)
        self.pool.fill(data, memoryview(pattern))
        refs = self.pool.refs(data)
        parts = [(ref, *span) for ref, span in zip(refs, shape.spans, strict=True)]
        if shape.operation == OP_DISCARD:
            slot = ABI_NATIVE.pack_discard(ident, sector, shape.sectors, shape.flag)
        elif shape.indirect:
            slot = self._indirect(shape.operation, ident, sector, parts, pages[count:])
        else:
            nr_segments = shape.nr_segments
            slot = ABI_NATIVE.pack_request(shape.operation, ident, sector, parts, nr_segments)
        return self._put(ident, slot, shape.operation, sector, pages, None)

    async def command(self, operation: int) -> asyncio.Future[None]:
        """Put a FLUSH_DISKCACHE or WRITE_BARRIER without data."""
        await self._room(0)
        ident = self._new_id()
        slot = ABI_NATIVE.pack_request(operation, ident, 0, [])
        return self._put(ident, slot, operation, 0, [], None)

    async def discard(self, offset: int, length: int, *, secure: bool) -> asyncio.Future[None]:
        """Put a DISCARD of `length` bytes."""
        await self._room(0)
        ident, sector = self._new_id(), offset >> SECTOR_SHIFT
        flag = DISCARD_SECURE if secure else 0
        slot = ABI_NATIVE.pack_discard(ident, sector, length >> SECTOR_SHIFT, flag)
        return self._put(ident, slot, OP_DISCARD, sector, [], None)

    async def drained(self) -> None:
        """Return when nothing is in flight."""
        await self._idle.wait()

    def stop(self, reason: Exception) -> None:
        """Touch the ring no more; whatever is in flight, and whoever waits, gets `reason`."""
        self._over = self._over or reason
        for _, turn in self._waiting:
            if not turn.done():
                turn.set_exception(reason)
        for flight in self._flights.values():
            if not flight.answer.done():
                flight.answer.set_exception(reason)
        self._waiting.clear()
        self._flights.clear()
        self._used = 0
        self._idle.set()

    def close(self) -> None:
        """Give the pages back, after `stop`."""
        self.pool.close()
        self._ring_pages.close()

    # Room

    async def _room(self, pages: int) -> list[int]:
        """A slot of the ring and so many pages, first come first served."""
        if self._over is not None:
            raise self._over
        if not self._waiting and self._fits(pages):
            return self._reserve(pages)
        turn: asyncio.Future[list[int]] = self._loop.create_future()
        self._waiting.append((pages, turn))
        try:
            room = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # It was our turn in the very moment in which nobody wanted it any more.
                self._release(turn.result())
            self._admit()
            raise
        if self._over is not None:
            # Stopped between its turn and now: nobody would answer, and the pages are gone.
            raise self._over
        return room

    def _fits(self, pages: int) -> bool:
        return self._used < self._ring.entries and pages <= self.pool.free

    def _reserve(self, pages: int) -> list[int]:
        self._used += 1
        self._idle.clear()
        return self.pool.take(pages)

    def _release(self, pages: list[int]) -> None:
        if self._over is not None:
            return
        self.pool.give(pages)
        self._used -= 1
        if self._used == 0:
            self._idle.set()

    def _admit(self) -> None:
        while self._waiting:
            pages, turn = self._waiting[0]
            if not turn.done():
                if not self._fits(pages):
                    return
                turn.set_result(self._reserve(pages))
            self._waiting.popleft()

    # The ring

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _put(
        self,
        ident: int,
        slot: bytes,
        operation: int,
        sector: int,
        pages: list[int],
        into: memoryview | None,
    ) -> asyncio.Future[None]:
        answer: asyncio.Future[None] = self._loop.create_future()
        # blkback answers an indirect request with the operation inside, blkif.h says the one
        # outside.
        named = (operation, slot[0])
        self._flights[ident] = _Flight(operation, named, sector, pages, into, answer)
        self._slots.append(slot)
        if len(self._slots) == 1:
            # Once for all that are put in this turn of the loop: one notification at most.
            self._loop.call_soon(self._push)
        return answer

    def _push(self) -> None:
        slots, self._slots = self._slots, []
        if self._over is None and self._ring.put(slots):
            self._ports.notify(self.port)

    def _serve(self) -> int:
        """Take the answers that are there.  No more than one for each request that was put."""
        handled = 0
        try:
            # A bound: between a look and the next, a backend could change its mind for ever.
            for _ in range(self._ring.entries):
                if self._over is not None:
                    break
                slots = self._ring.take()
                for slot in slots:
                    self._answer(slot)
                handled += len(slots)
                if not self._ring.final_check():
                    break
        except PeerError as error:
            self.stop(error)
            self._fail(error)
        self._admit()
        return handled

    def _answer(self, slot: bytes) -> None:
        ident, operation, status = ABI_NATIVE.unpack_response(slot)
        flight = self._flights.get(ident)
        if flight is None:
            raise PeerError(f"an answer to request {ident:#x}, which is not in flight")
        if operation not in flight.answered_as:
            asked = _name(flight.operation)
            raise PeerError(f"request {ident:#x}, a {asked}, is answered as operation {operation}")
        if status != RSP_OKAY and status not in ERRORS:
            raise PeerError(f"request {ident:#x} is answered with status {status}")
        del self._flights[ident]
        answer = flight.answer
        if not answer.done():
            if status == RSP_OKAY:
                if flight.into is not None:
                    self.pool.drain(flight.pages, flight.into)
                answer.set_result(None)
            else:
                hint = "the backend's answer"
                what = _name(flight.operation)
                answer.set_exception(XenError(ERRORS[status], what, hint, sector=flight.sector))
        self._release(flight.pages)


def _name(operation: int) -> str:
    return OPERATION_NAMES.get(operation, f"operation {operation}")
