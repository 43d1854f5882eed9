# SPDX-License-Identifier: MIT
"""Two byte rings as a stream in an event loop.

The rings are the buffer: nothing is taken out before somebody reads, so that a peer fills no
memory of ours, and is held up when nobody does.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from xenpy.errors import PeerError
from xenpy.ring import StreamIn, StreamOut

__all__ = ["RECORD_LIMIT", "ByteStream"]

RECORD_LIMIT: Final = 1 << 16
LENGTH: Final = struct.Struct("<I")

T = TypeVar("T")


class ByteStream:
    """What goes either way.  One coroutine may read and one write at a time.

    Args:
        taken, put: the rings.
        notify: tells the other end.

    Attributes:
        received, sent: bytes.
    """

    def __init__(self, taken: StreamIn, put: StreamOut, notify: Callable[[], None]) -> None:
        self._taken = taken
        self._put = put
        self._notify = notify
        self._turn = asyncio.Event()
        self._unsent = memoryview(b"")
        self._writing = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._over = False
        self._rest = b""
        self._error: Exception | None = None
        self.received = self.sent = 0

    async def read(self, limit: int = RECORD_LIMIT) -> bytes:
        """At least a byte, at most `limit`; b"" when the other end has gone or this one is closed.

        Raises:
            PeerError: the other end has put nonsense into the page.
        """
        async with self._reading:
            return await self._read(limit)

    async def readexactly(self, count: int) -> bytes:
        """So many bytes; raises as `read`.

        Raises:
            asyncio.IncompleteReadError: the other end has gone before.
        """
        async with self._reading:
            return await self._exactly(count)

    async def read_record(self, limit: int = RECORD_LIMIT) -> bytes | None:
        """What one `write_record` has written; None at the end; raises as `read`.

        Raises:
            PeerError: it is longer than `limit`, or the other end has gone within it.
        """
        async with self._reading:
            head = await self._read(LENGTH.size)
            if not head:
                return None
            try:
                head += await self._exactly(LENGTH.size - len(head))
                (length,) = LENGTH.unpack(head)
                if length > limit:
                    raise PeerError(f"a record of {length} bytes; {limit} are allowed")
                return await self._exactly(length)
            except asyncio.IncompleteReadError as error:
                raise PeerError("the other end has gone within a record") from error

    async def write(self, content: bytes | bytearray | memoryview) -> None:
        """Returns when all of it is in the ring; `content` is not to be changed before.

        Raises:
            ConnectionResetError: the other end has gone, or this one was closed.
            PeerError: the other end has put nonsense into the page.
        """
        async with self._writing:
            self._unsent = memoryview(content).cast("B")
            try:
                self._push()
                while self._unsent:
                    await self._wait()
                    self._push()
            finally:
                self._unsent = memoryview(b"")

    async def write_record(self, content: bytes | bytearray | memoryview) -> None:
        """A record, whose length goes before it: 32 bits, the least first.  Raises as `write`."""
        await self.write(LENGTH.pack(len(content)) + content)

    def service(self) -> int:
        """The other end has notified us.  Returns how many bytes it found to do."""
        moved = 0
        if not self._over:
            try:
                moved = self._push() + (self._taken.queued if self._reading.locked() else 0)
            except PeerError as error:
                self.end(error)
        self._turn.set()
        return moved

    def end(self, error: Exception | None = None) -> None:
        """There is no other end any more, or it broke the protocol.  The rings are not looked at
        after that; what there is in them now can still be read."""
        if not self._over:
            self._over = True
            self._error = error
            with suppress(PeerError):
                self._rest = self._taken.read()
        self._turn.set()

    async def _read(self, limit: int) -> bytes:
        while True:
            if self._rest:
                content, self._rest = self._rest[:limit], self._rest[limit:]
                return content
            if self._over:
                self._raise()
                return b""
            content = self._checked(lambda: self._taken.read(limit))
            if content:
                self.received += len(content)
                self._notify()
                return content
            await self._wait()

    async def _exactly(self, count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            more = await self._read(count - len(content))
            if not more:
                raise asyncio.IncompleteReadError(bytes(content), count)
            content += more
        return bytes(content)

    def _push(self) -> int:
        """As much of what is unsent as fits.  Returns how many bytes."""
        if not self._unsent:
            return 0
        if self._over:
            self._raise()
            raise ConnectionResetError("the other end has gone")
        count = self._checked(lambda: self._put.write(self._unsent))
        if count:
            self.sent += count
            self._unsent = self._unsent[count:]
            self._notify()
        return count

    def _checked(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except PeerError as error:
            self.end(error)
            raise

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    async def _wait(self) -> None:
        self._turn.clear()
        await self._turn.wait()
