# SPDX-License-Identifier: MIT
"""One connection to xenstored under asyncio: many requests in flight, none for ever.

Below `xenstore`, above `store_wire`.  A connection that breaks, or whose other end breaks
the protocol, fails everything in flight with `XenConnectionError` and is of no more use;
`xenstore.Store` makes the next one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from xenpy.errors import PeerError, XenConnectionError, XenError, XenTimeoutError
from xenpy.store_pyxs import Connection, Op, Packet, is_device
from xenpy.store_wire import HEADER_SIZE, PacketReader, encode_packet, parse_error, parse_event
from xenpy.store_writer import DeviceWriter, SocketWriter

__all__ = ["MAX_IN_FLIGHT", "StoreConnection"]

log = logging.getLogger(__name__)

MAX_IN_FLIGHT: Final = 256
"""Requests without an answer; the next ones wait for their turn.  With 4 KiB each this
bounds what is buffered towards an xenstored that does not read."""
_READ_SIZE: Final = 65536
_ABORT: Final = b"F\0"


@dataclass(slots=True)
class _Request:
    """A request on its way.

    Attributes:
        answer: None: whatever the answer is, nobody wants to know.
        serial: counts the requests that were sent; 0 while it waits for its turn.
    """

    op: Op
    tx_id: int
    payload: bytes
    name: str
    arguments: dict[str, object]
    answer: asyncio.Future[bytes] | None
    serial: int = 0
    timer: asyncio.TimerHandle | None = None


class StoreConnection:
    """Sends requests, matches answers, passes events on.

    Args:
        connection: connected and non-blocking; closed with this.
        on_event: called with path and token of each watch event.
        on_lost: called once, with the reason, unless `close` came first.
        first_id: the first request's number; they count up and wrap at 32 bits.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        on_event: Callable[[str, str], None],
        on_lost: Callable[[StoreConnection, XenError], None],
        first_id: int = 1,
    ) -> None:
        self._connection = connection
        self._on_event = on_event
        self._on_lost = on_lost
        self._next_id = first_id
        self._loop = asyncio.get_running_loop()
        self._requests: dict[int, _Request] = {}
        self._backlog: deque[_Request] = deque()
        self._awaited = 0
        self._sent = 0
        self._last_answered = 0
        self._last_answer = self._loop.time()
        self._reader = PacketReader()
        self._lost: XenError | None = None
        self._fd = connection.fileno()
        writer = DeviceWriter if is_device(connection.path) else SocketWriter
        self._writer = writer(self._fd, self._loop, self._write_failed)
        self.strays = 0
        """Answers that nobody had asked for, and events that cannot be read."""
        self._loop.add_reader(self._fd, self._readable)

    @property
    def in_flight(self) -> int:
        """Requests that were sent and not answered, those given up included."""
        return len(self._requests)

    def check(self) -> None:
        """Raises XenConnectionError if the connection is lost."""
        if self._lost is not None:
            raise self._lost_error("connect", {})

    async def request(
        self,
        op: Op,
        payload: bytes,
        *,
        timeout: float,
        tx_id: int = 0,
        name: str = "",
        **arguments: object,
    ) -> bytes:
        """Ask, and wait for the answer's payload.

        Raises:
            XenError: what xenstored answered.
            XenTimeoutError: no answer within `timeout` seconds, nor to any other request
                meanwhile; or later ones were answered, and this one was not.
            XenConnectionError: the connection broke; whether the request was carried out
                is unknown.
        """
        name = name or op.name.lower()
        if self._lost is not None:
            raise self._lost_error(name, arguments)
        if HEADER_SIZE + len(payload) > self._writer.max_message:
            raise XenError(errno.E2BIG, name, self._writer.size_hint, **arguments)
        answer: asyncio.Future[bytes] = self._loop.create_future()
        request = _Request(op, tx_id, payload, name, arguments, answer)
        if self._awaited < MAX_IN_FLIGHT:
            self._send(request)
        else:
            self._backlog.append(request)
        request.timer = self._loop.call_later(timeout, self._look_for_progress, request, timeout)
        try:
            return await answer
        except asyncio.CancelledError:
            # The answer may have come in the same turn of the loop, and is nobody's all the same.
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._too_late(request, answer.result())
            raise
        finally:
            request.timer.cancel()

    def post(self, op: Op, payload: bytes, *, tx_id: int = 0) -> None:
        """Ask for something whose answer changes nothing: an abort, an unwatch.

        Each belongs to one `request` before it, so that their number is bounded as well.
        """
        if self._lost is None:
            self._send(_Request(op, tx_id, payload, op.name.lower(), {}, None))

    async def close(self) -> None:
        """Close; whatever is in flight fails.  Harmless when closed already."""
        if self._lost is None:
            self._shut(XenConnectionError(errno.ECONNABORTED, "close"))
        await self._writer.finished()

    def _send(self, request: _Request) -> None:
        rq_id = self._next_id
        while rq_id in self._requests:
            rq_id = (rq_id + 1) & 0xFFFFFFFF
        self._next_id = (rq_id + 1) & 0xFFFFFFFF
        self._sent += 1
        request.serial = self._sent
        self._awaited += request.answer is not None
        self._requests[rq_id] = request
        self._writer.write(encode_packet(request.op, rq_id, request.tx_id, request.payload))

    def _send_backlog(self) -> None:
        while self._backlog and self._awaited < MAX_IN_FLIGHT:
            request = self._backlog.popleft()
            if request.answer is not None and not request.answer.done():
                self._send(request)

    def _look_for_progress(self, request: _Request, timeout: float) -> None:
        """The time is up, unless xenstored was busy with those before this one: it answers
        a connection's requests in their order, and a thousand may take it a while."""
        if request.answer is None or request.answer.done():
            return
        until = self._last_answer + timeout
        overtaken = 0 < request.serial < self._last_answered
        if not overtaken and until > self._loop.time():
            request.timer = self._loop.call_at(until, self._look_for_progress, request, timeout)
            return
        # Of one that was sent, the number stays taken until the answer comes.
        hint = "does xenstored still run?"
        request.answer.set_exception(
            XenTimeoutError(errno.ETIMEDOUT, request.name, hint, **request.arguments)
        )
        if request.serial == 0:
            # Not one of all those before it was answered in all that time.
            self._fail(XenConnectionError(errno.ECONNRESET, "receive", "xenstored answers nothing"))

    def _readable(self) -> None:
        # One read at a time: the loop has others to serve.
        try:
            data = os.read(self._fd, _READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(XenConnectionError(error.errno or errno.EIO, "receive"))
            return
        if not data:
            self._fail(XenConnectionError(errno.ECONNRESET, "receive", "xenstored has closed"))
            return
        try:
            for packet in self._reader.feed(data):
                self._take(packet)
                if self._lost is not None:
                    return
        except PeerError as error:
            self._fail(XenConnectionError(errno.EPROTO, "receive", str(error)))

    def _take(self, packet: Packet) -> None:
        if packet.op == Op.WATCH_EVENT:
            # rq_id and tx_id are not looked at: Linux's xenbus_dev_frontend.c leaves
            # whatever was on its stack there.
            try:
                path, token = parse_event(packet.payload)
            except PeerError as error:
                self._stray(str(error))
                return
            self._on_event(path, token)
            return
        self._writer.answered()
        request = self._requests.pop(packet.rq_id, None)
        if request is None:
            self._stray(f"nobody asked for answer {packet.rq_id} (operation {packet.op})")
            return
        self._last_answer = self._loop.time()
        self._last_answered = max(self._last_answered, request.serial)
        self._awaited -= request.answer is not None
        if packet.tx_id != request.tx_id or packet.op not in (request.op, Op.ERROR):
            text = f"operation {packet.op} in transaction {packet.tx_id} answers {request.name}"
            broken = XenConnectionError(errno.EPROTO, "receive", text)
            self._answer(request, broken)
            self._fail(broken)
        elif packet.op == Op.ERROR:
            self._answer(request, parse_error(packet.payload, request.name, **request.arguments))
        elif not self._answer(request, packet.payload):
            self._too_late(request, packet.payload)
        self._send_backlog()

    def _answer(self, request: _Request, outcome: bytes | XenError) -> bool:
        """Returns False if nobody waits any more."""
        answer = request.answer
        if answer is None or answer.done():
            return False
        if isinstance(outcome, bytes):
            answer.set_result(outcome)
        else:
            answer.set_exception(outcome)
        return True

    def _too_late(self, request: _Request, payload: bytes) -> None:
        if request.op is Op.TRANSACTION_START:
            # Whoever wanted it has gone; open transactions are counted by xenstored.
            number = payload.rstrip(b"\0")
            if number.isdigit() and int(number) <= 0xFFFFFFFF:
                self.post(Op.TRANSACTION_END, _ABORT, tx_id=int(number))

    def _stray(self, text: str) -> None:
        self.strays += 1
        if self.strays == 1:
            log.warning("xenstored: %s; further ones are only counted", text)

    def _write_failed(self, error: OSError) -> None:
        self._fail(XenConnectionError(error.errno or errno.EIO, "send"))

    def _fail(self, error: XenError) -> None:
        if self._lost is None:
            self._shut(error)
            self._on_lost(self, error)

    def _shut(self, error: XenError) -> None:
        self._lost = error
        self._loop.remove_reader(self._fd)
        self._writer.close()
        try:
            self._connection.close()
        except OSError:
            # pyxs shuts a socket down first, which fails once the peer has gone.
            log.debug("closing the connection to xenstored", exc_info=True)
        requests = [*self._requests.values(), *self._backlog]
        self._requests.clear()
        self._backlog.clear()
        for request in requests:
            self._answer(request, self._lost_error(request.name, request.arguments))

    def _lost_error(self, name: str, arguments: dict[str, object]) -> XenConnectionError:
        reason = self._lost
        number = errno.ECONNRESET if reason is None else reason.errno or errno.ECONNRESET
        hint = "" if reason is None else reason.hint
        return XenConnectionError(number, name, hint or "the connection is lost", **arguments)
