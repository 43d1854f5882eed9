# SPDX-License-Identifier: MIT
"""The ring of a `ring_backend.Backend`: requests out of it, calls, responses into it.

In the event loop.  Requests come as private copies, at most `limit` of them are being worked on
at a time, and all answers that are ready together are pushed, and notified, once.  While somebody
looks on, each is recorded with its answer, just before that is pushed.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Final, Generic, NamedTuple

from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantTable
from xenpy.ports import Ports
from xenpy.ring import BackRing
from xenpy.ring_protocol import RequestT, ResponseT, RingProtocol
from xenpy.trace import Trace
from xenpy.types import DomId, GrantRef, Port
from xenpy.wire import CAbi

__all__ = ["RingServer"]

STOP_BOUND: Final = 2.0
"""Seconds that handlers may take when the device closes."""


class _Origin(NamedTuple):
    """Where a request comes from, for the record of it.

    Attributes:
        taken: see `Trace.taken`.
        position: its index in the ring, free-running.
        slot: a private copy.
    """

    taken: int
    position: int
    slot: bytes


class RingServer(Generic[RequestT, ResponseT]):
    """One connection's data plane.

    Args:
        protocol, abi: what is spoken, and how the frontend lays it out.
        handle: answers a request.
        handle_batch: answers all that came together, in their order; None: `handle` does.
        failed: the response to a request for which `handle` raised.
        limit: requests that are being worked on at a time.
        fail: called with what makes the ring useless.

    Attributes:
        requests: how many were taken.
        notifications: how many were sent.
        trace: what the ring carries, recorded while somebody wants that; once it is open.
    """

    def __init__(
        self,
        protocol: RingProtocol[RequestT, ResponseT],
        abi: CAbi,
        handle: Callable[[RequestT], ResponseT | Awaitable[ResponseT]],
        handle_batch: Callable[[Sequence[RequestT]], Sequence[ResponseT]] | None,
        failed: Callable[[RequestT, Exception], ResponseT],
        limit: int,
        fail: Callable[[Exception], None],
    ) -> None:
        self._protocol = protocol
        self._codec = protocol.codec(abi)
        self._handle = handle
        self._handle_batch = handle_batch
        self._failed = failed
        self._limit = limit
        self._fail = fail
        self._held = ExitStack()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: list[tuple[_Origin, bytes]] = []
        self._later: asyncio.Handle | None = None
        self._over = True
        self._told = False
        self.requests = self.notifications = 0
        self.trace: Trace
        self._ring: BackRing
        self._ports: Ports
        self._port: Port

    def open(
        self,
        grants: GrantTable,
        channels: EventChannels,
        domid: DomId,
        refs: Sequence[GrantRef],
        remote_port: Port,
    ) -> None:
        """Map the ring's pages and bind the port, with handles that stay the caller's to close
        last.  Nothing is taken before `start`.

        Raises:
            XenError: there is no such grant or port; nothing is held.
            OSError: there is no memory for a trace, nor a descriptor; the same.
        """
        with ExitStack() as held:
            mapping = grants.map(domid, refs)
            held.callback(mapping.close)
            self._ring = BackRing(mapping, self._codec.layout, nr_pages=len(refs))
            self._ports = Ports(channels)
            held.callback(self._ports.close)
            self.trace = Trace()
            held.callback(self.trace.close)
            self._port = self._ports.bind(domid, remote_port, self._service)
            self._held = held.pop_all()

    def start(self) -> None:
        """Take requests from now on, those that were there before the port was bound first."""
        self._over = False
        self._soon()

    async def stop(self) -> None:
        """Take nothing more; return when every request taken has been answered.

        A handler that is not done within `STOP_BOUND` seconds, waiting for who knows what, is
        cancelled, and its request answered with ECANCELED.
        """
        self._over = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_BOUND)
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._later is not None:
            self._later.cancel()
        self._push()

    def close(self) -> None:
        """Let go of ring and port.  Nothing may be in flight; see `stop`."""
        self._over = True
        self._held.close()

    def _service(self) -> int:
        """One bounded turn.  Returns how many requests it took: 0 only after the final check,
        or while as many as may be are being worked on, whose answers bring the next turn."""
        taken = 0
        try:
            room = 0 if self._over else self._limit - len(self._tasks)
            slots = self._take(room) if room > 0 else []
            taken = len(slots)
            origins = self._origins(slots)
            requests = [self._codec.request(slot) for slot in slots]
            if self._handle_batch is not None and requests:
                self._answer_all(origins, requests, self._handle_batch)
            else:
                for origin, request in zip(origins, requests, strict=True):
                    self._begin(origin, request)
            self._push()
        except Exception as error:
            self._broken(error)
        if taken:
            # There may be more, after everybody else's turn.
            self._soon()
        self.requests += taken
        return taken

    def _take(self, room: int) -> list[bytes]:
        slots = self._ring.take(room)
        if not slots and self._ring.final_check():
            slots = self._ring.take(room)
        return slots

    def _origins(self, slots: Sequence[bytes]) -> Sequence[_Origin]:
        if not slots:
            # Also once the trace is closed.
            return []
        now = self.trace.taken()
        first = self._ring.consumed - len(slots)
        return [_Origin(now, position, slot) for position, slot in enumerate(slots, first)]

    def _answer_all(
        self,
        origins: Sequence[_Origin],
        requests: Sequence[RequestT],
        handle: Callable[[Sequence[RequestT]], Sequence[ResponseT]],
    ) -> None:
        try:
            responses = handle(requests)
            if len(responses) != len(requests):
                raise ValueError(f"{len(responses)} responses to {len(requests)} requests")
        except (Exception, asyncio.CancelledError) as error:
            for origin, request in zip(origins, requests, strict=True):
                self._refuse(origin, request, error)
        else:
            for origin, request, response in zip(origins, requests, responses, strict=True):
                self._answer(origin, request, response)

    def _begin(self, origin: _Origin, request: RequestT) -> None:
        try:
            result = self._handle(request)
        except (Exception, asyncio.CancelledError) as error:
            self._refuse(origin, request, error)
            return
        if isinstance(result, Awaitable):
            task = self._loop.create_task(self._finish(origin, request, result))
            self._tasks.add(task)
            task.add_done_callback(self._finished)
        else:
            self._answer(origin, request, result)

    async def _finish(
        self, origin: _Origin, request: RequestT, result: Awaitable[ResponseT]
    ) -> None:
        try:
            response = await result
        except (Exception, asyncio.CancelledError) as error:
            self._refuse(origin, request, error)
        else:
            self._answer(origin, request, response)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._soon()

    def _answer(self, origin: _Origin, request: RequestT, response: ResponseT) -> None:
        try:
            if self._protocol.id_of_response(response) != self._protocol.id_of_request(request):
                raise ValueError(f"{response!r} has another id than {request!r}")
            self._ready.append((origin, self._codec.pack_response(response)))
        except Exception as error:
            self._refuse(origin, request, error)

    def _refuse(self, origin: _Origin, request: RequestT, error: BaseException) -> None:
        if not isinstance(error, Exception):
            error = OSError(errno.ECANCELED, "the handler was cancelled")
        try:
            response = self._codec.pack_response(self._failed(request, error))
            self._ready.append((origin, response))
        except Exception as worse:
            # Nobody would ever answer this one.
            self._broken(worse)

    def _soon(self) -> None:
        """Another turn, once for all that asks for it meanwhile."""
        if self._later is None:
            self._later = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._later = None
        self._service()

    def _push(self) -> None:
        ready, self._ready = self._ready, []
        for origin, response in ready:
            if origin.taken:
                self.trace.put(origin.taken, origin.position, 0, origin.slot, response)
        if ready and self._ring.push([response for _, response in ready]):
            self.notifications += 1
            self._ports.notify(self._port)

    def _broken(self, error: Exception) -> None:
        """Take nothing more, and say so once: also while it stops, for a request that nobody ever
        answers is no orderly end."""
        self._over = True
        if not self._told:
            self._told = True
            self._fail(error)
