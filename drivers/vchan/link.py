# SPDX-License-Identifier: MIT
"""What a reader and a writer share: one connected channel in an event loop.

The ring is the buffer.  Nothing is taken out of it before somebody reads, so that a peer can
fill no memory of ours; and what is written goes into it at once, as far as there is room.

Notifications are put off to the next turn of the loop, or until half a ring has come together:
a program that reads or writes without having to wait does not notify for each piece.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Final, TypeAlias

from xenpy.drivers.vchan.channel import Channel
from xenpy.drivers.vchan.protocol import NOTIFY_READ, NOTIFY_WRITE, Live
from xenpy.errors import PeerError, xen_error

__all__ = ["TURN", "Buffer", "Link"]

Buffer: TypeAlias = bytes | bytearray | memoryview

TURN: Final = 256 << 10
"""Bytes that are moved without waiting before others in the loop have their turn."""


class Link:
    """A connected channel.

    Attributes:
        channel: the rings.
        error: what broke it, a PeerError; or None.
        gone: the peer has closed, or died.
        closing: `close` was called; nothing more is taken to be written.
        closed: nothing is held any more.
        moved: bytes since the last `breathe`, which is due from `TURN` on.
        guard: a task that ends when the link is closed, and with it what it holds.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.error: Exception | None = None
        self.gone = False
        self.closing = False
        self.closed = False
        self.moved = 0
        self.guard: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._closed = asyncio.Event()
        self._pending = bytearray()
        self._dropped = False
        self._incoming, self._outgoing = channel.incoming, channel.outgoing
        self._half = min(self._incoming.size, self._outgoing.size) // 2
        self._done = 0
        self._done_bytes = 0
        self._telling = False
        self._waiters: list[tuple[Callable[[], bool], int, asyncio.Future[None]]] = []
        channel.on_event = self._service

    def __repr__(self) -> str:
        state = "closed" if self.closed else "peer gone" if self.gone else "open"
        return f"<Link {state}, {len(self._pending)} bytes to write, {self.channel!r}>"

    # Reading

    def read(self, limit: int) -> bytes:
        """Up to `limit` bytes, at once; b"" when there are none now: see `readable`."""
        if self.closed:
            return b""
        try:
            content = self._incoming.read(limit)
        except PeerError as error:
            self.fail(error)
            return b""
        if content:
            self._did(NOTIFY_READ, len(content))
        return content

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """As `read`, into a buffer; returns how many bytes."""
        if self.closed:
            return 0
        try:
            count = self._incoming.readinto(buffer)
        except PeerError as error:
            self.fail(error)
            return 0
        if count:
            self._did(NOTIFY_READ, count)
        return count

    async def readable(self) -> bool:
        """Wait until there is something to read.  False: there never will be.

        Raises:
            PeerError: the peer broke the protocol; everything is closed.
        """
        await self._until(self._is_readable, NOTIFY_WRITE)
        queued = self.queued
        if self.error is not None:
            raise self.error
        return queued > 0

    @property
    def at_eof(self) -> bool:
        """There is nothing to read, and never will be."""
        return self.closed or (self.gone and not self.queued)

    @property
    def queued(self) -> int:
        """Bytes to be read; 0 if the peer says what cannot be, which closes everything."""
        return self._counted(lambda: self._incoming.queued)

    def _is_readable(self) -> bool:
        # In this order: what a peer wrote before it went is found after that was seen.
        return self._look() or self.queued > 0

    # Writing

    def put(self, content: Buffer) -> int:
        """What of it fits into the ring now, behind all that was written before: so many bytes."""
        if self.closing or self.gone or self._pending or self.closed:
            return 0
        try:
            count = self._outgoing.write(content)
        except PeerError as error:
            self.fail(error)
            return 0
        if count:
            self._did(NOTIFY_WRITE, count)
        return count

    def write(self, content: Buffer) -> None:
        """Put into the ring what fits, and keep a copy of the rest until there is room.

        What can reach nobody any more is dropped; `drained` says so.
        """
        view = memoryview(content).cast("B")
        put = self.put(view)
        if put < len(view) and not (self.closing or self.gone or self.closed):
            self._pending += view[put:]
            self._push()

    async def send(self, content: memoryview) -> None:
        """Write all of these bytes, and copy them nowhere but into the ring.

        Raises:
            as `drained`.
        """
        await self.drained()
        while len(content):
            if self.closing:
                raise xen_error(errno.EPIPE, "write", "it is closed")
            put = self.put(content)
            content = content[put:]
            if not put:
                await self._until(self._is_writable, NOTIFY_READ)
            await self.drained()

    async def drained(self) -> None:
        """Wait until everything that was written is in the ring.

        Raises:
            PeerError: the peer broke the protocol.
            XenConnectionError: ECONNRESET, the peer is gone; EPIPE, this side is closed.
        """
        if self._pending:
            await self._until(lambda: not self._pending, NOTIFY_READ)
        if self.moved >= TURN:
            await self.breathe()
        self._refuse_if_over()

    async def flushed(self) -> None:
        """Wait until the peer has read everything that was written; it may be gone then.

        Raises:
            as `drained`.
        """
        await self._until(self._is_read, NOTIFY_READ)
        if not self._all_read():
            self._refuse_if_over()

    def _is_read(self) -> bool:
        return self._look() or self._all_read()

    def _all_read(self) -> bool:
        unread = self._counted(lambda: self._outgoing.unread)
        return not (self.closed or self._pending or self._dropped or unread)

    def _is_writable(self) -> bool:
        unread = self._counted(lambda: self._outgoing.unread)
        return self._look() or unread < self._outgoing.size

    def _refuse_if_over(self) -> None:
        if self.error is not None:
            raise self.error
        if self.closed:
            raise xen_error(errno.EPIPE, "write", "it is closed")
        if self.gone:
            raise xen_error(errno.ECONNRESET, "write", "the other side is gone")

    def _push(self) -> None:
        """Move what is pending into the ring; if not all of it fits, be told of room."""
        asked = False
        while self._pending:
            try:
                count = self._outgoing.write(self._pending)
            except PeerError as error:
                self.fail(error)
                return
            if count:
                del self._pending[:count]
                self._did(NOTIFY_WRITE, count)
            elif asked:
                return
            else:
                self.channel.want(NOTIFY_READ)
                asked = True
        if self.closing:
            self._finish()

    # The end

    def close(self) -> None:
        """Close once what is pending is in the ring, where the peer may read it afterwards."""
        self.closing = True
        if not self._pending:
            self._finish()

    def abort(self) -> None:
        """Close now."""
        self.closing = True
        self._finish()

    def fail(self, error: Exception) -> None:
        """Close now, and tell everybody why."""
        if not self.closed:
            self.error = error
            self._finish()

    def lost(self) -> None:
        """The peer's domain is not there any more; what it has written may still be read."""
        self.gone = True
        self._look()
        self._wake()

    async def ended(self) -> None:
        """Return when the channel is closed, for whatever reason."""
        await self._closed.wait()

    async def wait_closed(self) -> None:
        """Return when nothing is held.

        Raises:
            PeerError: if that is what ended it.
        """
        await self._closed.wait()
        if self.guard is not None:
            await asyncio.wait([self.guard])
        if self.error is not None:
            raise self.error

    def _finish(self) -> None:
        if self.closed:
            return
        self._pending.clear()
        self.closed = True
        self._closed.set()
        self.channel.close()
        if self.guard is not None:
            self.guard.cancel()
        self._wake()

    # Waiting, and what the peer says

    async def breathe(self) -> None:
        """Let others run."""
        self.moved = 0
        await asyncio.sleep(0)

    def _service(self) -> int:
        """The peer has notified us.  Returns 0 if for nothing."""
        gone, pending = self.gone, len(self._pending)
        self._look()
        if self._pending:
            self._push()
        found = self._wake()
        return found + (self.gone != gone) + (len(self._pending) != pending)

    def _look(self) -> bool:
        """Whether the peer is gone, or the link closed."""
        if not self.gone and not self.closed:
            try:
                live = self.channel.peer()
                if live is Live.NOT_YET:
                    raise PeerError("a client that was here says that it has yet to come")
                self.gone = live is Live.GONE
            except PeerError as error:
                self.fail(error)
        if self.gone and self._pending:
            # It can go nowhere.
            self._pending.clear()
            self._dropped = True
            if self.closing:
                self._finish()
        return self.gone or self.closed

    def _counted(self, count: Callable[[], int]) -> int:
        """A number of bytes; 0 once it makes no sense, which closes the link."""
        if not self.closed:
            try:
                return count()
            except PeerError as error:
                self.fail(error)
        return 0

    async def _until(self, condition: Callable[[], bool], bit: int) -> None:
        """Return once it holds, or the link is closed; `bit` is what may make it hold."""
        while not (self.closed or condition() or self._asked(condition, bit)):
            self._tell()
            waiter = condition, bit, self._loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter[2]
            finally:
                self._waiters.remove(waiter)

    def _wake(self) -> int:
        """Let go on whoever has what it waits for.  Returns how many."""
        woken = 0
        for condition, bit, waiter in list(self._waiters):
            if not waiter.done() and (self.closed or condition() or self._asked(condition, bit)):
                waiter.set_result(None)
                woken += 1
        return woken

    def _asked(self, condition: Callable[[], bool], bit: int) -> bool:
        """Ask to be told, and look again; anew after each event: whoever notified us has taken the
        bit away, and may have done so late, for what had been found before without it.
        """
        if not self.closed:
            self.channel.want(bit)
        return self.closed or condition()

    # What the peer is told, and when

    def _did(self, bit: int, count: int) -> None:
        """Bytes were read, or written: of half a ring of them the peer is told at once."""
        self.moved += count
        self._done |= bit
        self._done_bytes += count
        if self._done_bytes >= self._half:
            self._tell()
        elif not self._telling:
            self._telling = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._telling = False
        self._tell()

    def _tell(self) -> None:
        bits, self._done, self._done_bytes = self._done, 0, 0
        if bits and not self.closed:
            self.channel.tell(bits)
