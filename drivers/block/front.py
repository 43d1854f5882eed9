# SPDX-License-Identifier: MIT
"""A blkfront in Python: `BlockDevice`, a disk to read and write from asyncio.

    async with Store.open() as store:
        async with BlockDevice(store, "/local/domain/3/device/vbd/51728") as disk:
            first = await disk.pread(4096, 0)
            await disk.pwrite(first, 8192)
            await disk.flush()

It works against any blkback, and trusts none: see `xenpy.frontend_life` and `front_queue`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Final, Self, TypeAlias

from xenpy.backend import Keys
from xenpy.drivers.block.backend_keys import DiskKeys, TransportOffer
from xenpy.drivers.block.front_link import TRANSPORT_KEYS, Link, Wishes
from xenpy.drivers.block.front_protocol import pieces
from xenpy.drivers.block.protocol import (
    OP_FLUSH_DISKCACHE,
    OP_READ,
    OP_WRITE,
    OP_WRITE_BARRIER,
)
from xenpy.errors import PeerError, XenError, XenTimeoutError
from xenpy.frontend import Frontend, FrontendAccess, FrontendContext, NativeFrontend
from xenpy.frontend_life import FrontendLife
from xenpy.types import PAGE_SIZE
from xenpy.xenstore import Store

__all__ = ["BlockDevice", "BlockFrontend"]

Buffer: TypeAlias = bytes | bytearray | memoryview

ANSWER_BOUND: Final = 60.0
"""Seconds without an answer until a caller is told."""


class BlockFrontend(Frontend):
    """The driver's half as `FrontendLife` sees it: what is connected, and to what disk."""

    transport_keys = TRANSPORT_KEYS

    def __init__(self, context: FrontendContext, wishes: Wishes) -> None:
        super().__init__(context)
        self._wishes = wishes
        self._link: Link | None = None
        self._disk: DiskKeys | None = None

    @property
    def link(self) -> Link:
        """Raises XenError: ENOTCONN."""
        if self._link is None:
            raise XenError(errno.ENOTCONN, "block", path=self.context.ends.path)
        return self._link

    @property
    def disk(self) -> DiskKeys:
        """As it was last seen.  Raises XenError: ENOTCONN, it never was."""
        if self._disk is None:
            raise XenError(errno.ENOTCONN, "block", path=self.context.ends.path)
        return self._disk

    async def publish(self, backend: Mapping[str, str]) -> Keys:
        self._link = Link(self.context, TransportOffer.parse(backend), self._wishes)
        return self._link.keys()

    async def connect(self, backend: Mapping[str, str]) -> None:
        self._disk = DiskKeys.parse(backend, self.context.ends.backend.kind)

    async def changed(self, backend: Mapping[str, str]) -> None:
        before, now = self.disk, DiskKeys.parse(backend, self.context.ends.backend.kind)
        if now.sector_size != before.sector_size:
            raise PeerError(f"sector-size was {before.sector_size} and is {now.sector_size}")
        if now.sectors != before.sectors:
            self.context.log.info("resized from %d to %d sectors", before.sectors, now.sectors)
        # Nothing else may change while connected, and what is written there has no effect.
        self._disk = replace(before, sectors=now.sectors)

    async def drain(self) -> None:
        if self._link is not None:
            await self._link.drained()

    async def disconnect(self, reason: Exception) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close(reason)


class BlockDevice:
    """A disk; an async context manager that connects and closes.

    Offsets and lengths are bytes, and multiples of `sector_size`.  Any number of calls may
    run at the same time; what does not fit into the ring waits its turn.  No order holds among
    calls that run at the same time.  A call that is cancelled, or times out, may still be
    carried out by the backend.

    Args:
        store: where the device's nodes are.
        path: the frontend's directory, such as /local/domain/3/device/vbd/51728.
        wishes: rings, queues and pages to ask for.
        xen: opens the handles.
        timeout: seconds to become connected, and to be so again after the backend went away.
        answer_bound: seconds without an answer until a call fails; math.inf: as long as it takes.
        take_over: see `FrontendLife`, as for what entering raises.

    Every call raises what is listed here.

    Raises:
        XenError: EINVAL, not aligned, or beyond the end; EIO, EOPNOTSUPP, the backend's answer;
            ECONNRESET, the backend started over, and nobody knows what of the call was done;
            ESHUTDOWN, ENODEV, the device is closed or gone.
        XenTimeoutError: no answer.
        PeerError: the backend broke the protocol; the device is closed.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        *,
        wishes: Wishes | None = None,
        xen: FrontendAccess | None = None,
        timeout: float = 30.0,
        answer_bound: float = ANSWER_BOUND,
        take_over: bool = False,
    ) -> None:
        self._path = path
        self._wishes = wishes or Wishes()
        self._timeout = timeout
        self._answer_bound = answer_bound
        self._life = FrontendLife(
            store, path, self._make, xen=xen or NativeFrontend(), timeout=timeout,
            take_over=take_over,
        )  # fmt: skip
        self._front: BlockFrontend | None = None
        self._unflushed: Link | None = None
        """The connection by which something was written that has not been flushed."""

    def _make(self, context: FrontendContext) -> BlockFrontend:
        self._front = BlockFrontend(context, self._wishes)
        return self._front

    async def __aenter__(self) -> Self:
        await self._life.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._life.close()

    def __repr__(self) -> str:
        return f"<BlockDevice {self._path} {self._life.phase.name}>"

    @property
    def front(self) -> BlockFrontend:
        """What is connected; raises XenError, ENOTCONN, before it ever was."""
        if self._front is None:
            raise XenError(errno.ENOTCONN, "block", "enter it first: async with", path=self._path)
        return self._front

    @property
    def disk(self) -> DiskKeys:
        """What the backend says of the disk."""
        return self.front.disk

    @property
    def size(self) -> int:
        """Bytes; it changes when the disk is resized."""
        return self.disk.size

    @property
    def sector_size(self) -> int:
        """What offsets and lengths are multiples of, in bytes."""
        return self.disk.sector_size

    @property
    def readonly(self) -> bool:
        return self.disk.readonly

    async def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes at `offset`."""
        content = bytearray(length)
        await self.preadv([content], offset)
        return bytes(content)

    async def preadv(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Fill the buffers, one after the other, with what is at `offset`.

        After an error, or when it is cancelled, parts of them may have been written; nothing
        is written there any more.

        Returns:
            How many bytes: all.
        """
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        length = sum(map(len, views))
        if len(views) == 1:
            await self._transfer(OP_READ, length, offset, into=views[0])
            return length
        whole = bytearray(length)
        await self._transfer(OP_READ, length, offset, into=memoryview(whole))
        start = 0
        for view in views:
            view[:] = whole[start : start + len(view)]
            start += len(view)
        return length

    async def pwrite(self, content: Buffer, offset: int) -> int:
        """Write `content` at `offset`.  Returns how many bytes: all.

        On stable storage after the next `flush` only.  `content` may be changed again once
        this has returned.
        """
        return await self.pwritev([content], offset)

    async def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Write the buffers, one after the other, at `offset`.  As `pwrite`."""
        whole = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        content = memoryview(whole).cast("B")
        if self.readonly:
            raise XenError(errno.EROFS, "write", path=self._path)
        await self._transfer(OP_WRITE, len(content), offset, content=content)
        return len(content)

    async def flush(self) -> None:
        """Return once every write that had returned before this call is on stable storage.

        Raises:
            XenError: EOPNOTSUPP, the backend knows neither flush nor barrier; ECONNRESET, it has
                started over since something was written, and may have lost that.  Said once.
        """
        await self._life.ready(self._timeout)
        operation = OP_FLUSH_DISKCACHE if self.disk.flush else OP_WRITE_BARRIER
        self._need("flush", self.disk.flush or self.disk.barrier)
        link, written = self.front.link, self._unflushed
        # From here on it is what is written beside this flush, which need not cover it.
        self._unflushed = None
        if written not in (None, link):
            hint = "the backend started over, and may have lost what was written"
            raise XenError(errno.ECONNRESET, "flush", hint, path=self._path)
        try:
            await self.answered([await self._room(link.idlest().command(operation))])
        except BaseException:
            # What was written beside it has not been flushed either; an older one comes first.
            self._unflushed = written or self._unflushed
            raise

    async def barrier(self) -> None:
        """WRITE_BARRIER: no write that is asked for later is done before one that was asked
        for earlier.  With one queue only: blkif has no order among rings.

        Raises:
            XenError: EOPNOTSUPP, the backend knows none, or there are several queues.
        """
        await self._life.ready(self._timeout)
        queues = self.front.link.queues
        self._need("barrier", self.disk.barrier and len(queues) == 1)
        await self.answered([await self._room(queues[0].command(OP_WRITE_BARRIER))])

    async def discard(self, offset: int, length: int, *, secure: bool = False) -> None:
        """Give these bytes back: what they read as afterwards is the backend's affair.

        Args:
            secure: no copy of them may remain.

        Raises:
            XenError: EOPNOTSUPP, the backend does not know it; EROFS.
        """
        await self._life.ready(self._timeout)
        disk = self.disk
        self._need("discard", disk.secure_discard if secure else disk.discard)
        if disk.readonly:
            raise XenError(errno.EROFS, "discard", path=self._path)
        self._check("discard", offset, length)
        if length:
            queue = self.front.link.idlest()
            await self.answered([await self._room(queue.discard(offset, length, secure=secure))])

    async def _transfer(
        self,
        operation: int,
        length: int,
        offset: int,
        *,
        content: memoryview | None = None,
        into: memoryview | None = None,
    ) -> None:
        await self._life.ready(self._timeout)
        self._check("read" if operation == OP_READ else "write", offset, length)
        link = self.front.link
        most = self._wishes.most_segments(self.disk.max_segments) * PAGE_SIZE
        answers: list[asyncio.Future[None]] = []
        try:
            for piece in pieces(offset, length, most):
                end = piece.start + piece.length
                put = link.idlest().transfer(
                    operation,
                    piece.offset,
                    content=content[piece.start : end] if content is not None else None,
                    into=into[piece.start : end] if into is not None else None,
                )
                answers.append(await self._room(put))
        except BaseException:
            _give_up(answers)
            raise
        await self.answered(answers)
        if operation == OP_WRITE:
            # An older one stays: it is what may be lost.
            self._unflushed = self._unflushed or link

    def _check(self, operation: str, offset: int, length: int) -> None:
        size, unit = self.disk.size, self.disk.sector_size
        hint = ""
        if offset % unit or length % unit:
            hint = f"multiples of {unit} bytes only"
        elif offset < 0 or length < 0 or offset + length > size:
            hint = f"the disk has {size} bytes"
        if hint:
            raise XenError(errno.EINVAL, operation, hint, offset=offset, length=length)

    def _need(self, operation: str, offered: bool) -> None:
        if not offered:
            hint = "the backend does not offer it"
            raise XenError(errno.EOPNOTSUPP, operation, hint, path=self._path)

    async def _room(self, put: Awaitable[asyncio.Future[None]]) -> asyncio.Future[None]:
        try:
            async with asyncio.timeout(self._answer_bound):
                return await put
        except TimeoutError as error:
            raise self._unanswered(error) from None

    async def answered(self, answers: list[asyncio.Future[None]]) -> None:
        """Wait for all that a queue of the link was asked for; of several errors, the first is
        raised."""
        try:
            for answer in answers:
                async with asyncio.timeout(self._answer_bound):
                    await answer
        except TimeoutError as error:
            _give_up(answers)
            raise self._unanswered(error) from None
        except BaseException:
            _give_up(answers)
            raise

    def _unanswered(self, error: TimeoutError) -> TimeoutError:
        """What a caller is told; a reason to fail that is a time-out itself stays as it is."""
        if isinstance(error, XenError):
            return error
        hint = "the backend does not answer"
        return XenTimeoutError(
            errno.ETIMEDOUT, "io", hint, path=self._path, seconds=self._answer_bound
        )


def _give_up(answers: Iterable[asyncio.Future[None]]) -> None:
    """Nobody waits for these any more: their buffers are the caller's again."""
    for answer in answers:
        if answer.done() and not answer.cancelled():
            answer.exception()
        answer.cancel()
