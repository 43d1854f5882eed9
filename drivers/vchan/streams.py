# SPDX-License-Identifier: MIT
"""A vchan as two streams: `VchanReader` and `VchanWriter`.

They have the methods of asyncio.StreamReader and StreamWriter, with the same meaning, and are
none of them: those keep a buffer of their own between the transport and the program, so that a
byte is copied four times and a peer is told of room that nobody has made.  Here a byte is copied
once, between the ring and the program, and the ring is full as long as the program does not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Self

from xenpy.drivers.vchan.link import TURN, Buffer, Link
from xenpy.drivers.vchan.protocol import MAX_SIZE
from xenpy.types import DomId

__all__ = ["LINE_LIMIT", "VchanReader", "VchanWriter"]

LINE_LIMIT: Final = 64 << 10
"""Bytes that `readuntil` looks through; as asyncio's."""


class VchanReader:
    """What the other side writes.  One coroutine may read at a time.

    Every call raises what is listed here, apart from what it raises by itself.

    Raises:
        PeerError: the other side broke the protocol; the channel is closed.
        RuntimeError: another coroutine is reading.
    """

    def __init__(self, link: Link, limit: int = LINE_LIMIT) -> None:
        self._link = link
        self._limit = limit
        self._reading = False
        # What was taken out of the ring by a call that needs more than it found.
        self._ahead = bytearray()

    def __repr__(self) -> str:
        return f"<VchanReader {self._link!r}>"

    def at_eof(self) -> bool:
        """Everything was read, and the other side is gone or this one closed."""
        return not self._ahead and self._link.at_eof

    @property
    def ready(self) -> int:
        """Bytes that can be read without waiting."""
        return len(self._ahead) + self._link.queued

    async def read(self, n: int = -1) -> bytes:
        """Up to `n` bytes, as soon as there is one; b"" at the end.  -1: all until the end."""
        if n == 0:
            return b""
        if n < 0:
            return b"".join([chunk async for chunk in self._chunks()])
        if self._ahead:
            return self._take(n)
        if self._link.moved >= TURN:
            await self._link.breathe()
        while not (content := self._link.read(n)):
            if not await self._more():
                return b""
        return content

    async def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill some of `buffer`, as soon as there is a byte.  Returns how many; 0 at the end."""
        if self._ahead:
            with memoryview(buffer).cast("B") as view:
                content = self._take(len(view))
                view[: len(content)] = content
            return len(content)
        if self._link.moved >= TURN:
            await self._link.breathe()
        while not (count := self._link.readinto(buffer)) and len(buffer):
            if not await self._more():
                return 0
        return count

    async def readexactly(self, n: int) -> bytes:
        """Exactly `n` bytes.  If this is cancelled, they are there for the next call.

        Raises:
            asyncio.IncompleteReadError: the other side is gone; `partial` has what there was.
        """
        if n < 0:
            raise ValueError(f"{n} bytes")
        if not self._ahead and n:
            content = await self.read(n)
            if len(content) == n:
                return content
            self._ahead += content
        while len(self._ahead) < n:
            await self._read_ahead(n - len(self._ahead), n)
        return self._take(n) if n else b""

    async def readline(self) -> bytes:
        """As `readuntil(b"\\n")`; at the end what there is.

        Raises:
            ValueError: the line is too long; it is dropped.
        """
        try:
            return await self.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial
        except asyncio.LimitOverrunError as error:
            del self._ahead[: error.consumed]
            raise ValueError(error.args[0]) from error

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Everything up to and with `separator`.

        Raises:
            asyncio.IncompleteReadError: the end came first.
            asyncio.LimitOverrunError: there are 64 KiB without one; they may still be read.
        """
        if not separator:
            raise ValueError("a separator has at least a byte")
        start = 0
        while (place := self._ahead.find(separator, start)) < 0:
            start = max(0, len(self._ahead) - len(separator) + 1)
            room = self._limit - len(self._ahead)
            if room <= 0:
                raise asyncio.LimitOverrunError(f"no {separator!r} in {self._limit} bytes", start)
            await self._read_ahead(room, None)
        return self._take(place + len(separator))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next line."""
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    async def _chunks(self) -> AsyncIterator[bytes]:
        while content := await self.read(MAX_SIZE):
            yield content

    async def _read_ahead(self, most: int, expected: int | None) -> None:
        """Some bytes, kept in `_ahead`.

        Raises:
            asyncio.IncompleteReadError: there are no more; `_ahead` is empty now.
        """
        while not (content := self._link.read(most)):
            if not await self._more():
                raise asyncio.IncompleteReadError(self._take(len(self._ahead)), expected)
        self._ahead += content

    def _take(self, n: int) -> bytes:
        content = bytes(memoryview(self._ahead)[:n])
        del self._ahead[:n]
        return content

    async def _more(self) -> bool:
        if self._reading:
            raise RuntimeError("another coroutine is reading")
        self._reading = True
        try:
            return await self._link.readable()
        finally:
            self._reading = False


class VchanWriter:
    """What the other side reads."""

    def __init__(self, link: Link, domid: DomId, path: str) -> None:
        self._link = link
        self._extra = {
            "domid": domid,
            "path": path,
            "left": link.channel.layout.left.size,
            "right": link.channel.layout.right.size,
        }

    def __repr__(self) -> str:
        return f"<VchanWriter {self._link!r}>"

    def write(self, data: Buffer) -> None:
        """Write; what does not fit into the ring is kept until there is room: see `drain`."""
        self._link.write(data)

    def writelines(self, data: list[Buffer]) -> None:
        for piece in data:
            self._link.write(piece)

    async def drain(self) -> None:
        """Wait until everything that was written is in the ring.

        Raises:
            PeerError: the other side broke the protocol; the channel is closed.
            XenConnectionError: ECONNRESET, the other side is gone; EPIPE, this one is closed.
        """
        await self._link.drained()

    async def send(self, data: Buffer) -> None:
        """`write` and `drain` by one call, which needs no memory for what does not fit.

        `data` is not to be changed before it returns.  If it is cancelled, nobody knows how much
        was written.

        Raises:
            as `drain`.
        """
        put = self._link.put(data)
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if not put or put < size or self._link.moved >= TURN:
            await self._link.send(memoryview(data).cast("B")[put:])

    async def flush(self) -> None:
        """Wait until the other side has read everything that was written; it may be gone then.

        Raises:
            as `drain`.
        """
        await self._link.flushed()

    def can_write_eof(self) -> bool:
        """No: vchan has no end of one direction."""
        return False

    def is_closing(self) -> bool:
        return self._link.closing or self._link.closed

    def close(self) -> None:
        """Close both directions, once what was written is in the ring.

        The other side may read that afterwards.  (`vchan-socket-proxy` does not: it throws away
        what it has not read.  Use `flush` first.)
        """
        self._link.close()

    def abort(self) -> None:
        """Close now, whatever was written."""
        self._link.abort()

    async def wait_closed(self) -> None:
        """Return when nothing is held any more.

        Raises:
            PeerError: if that is what ended it.
        """
        await self._link.wait_closed()

    def get_extra_info(self, name: str, default: object = None) -> object:
        """`domid` and `path` of the other side's channel; `left` and `right`: bytes of a ring."""
        return self._extra.get(name, default)
