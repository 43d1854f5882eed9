# SPDX-License-Identifier: MIT
"""One ring of a frontend of your own: requests into it, answers out of it, each to who asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Generic

from xenpy.errors import PeerError
from xenpy.frontend import FrontendContext
from xenpy.ports import Ports
from xenpy.ring import FrontRing
from xenpy.ring_keys import RingPlace
from xenpy.ring_protocol import RequestT, ResponseT, RingProtocol

__all__ = ["RingAsker"]


class RingAsker(Generic[RequestT, ResponseT]):
    """A ring granted to the backend, and its port.

    Args:
        context: the device's.
        nr_pages: of the ring.
        answered: called with the id of each request that is in flight no more.

    Attributes:
        place: what to publish.
        asked: what the responses to requests in flight come in, by id.
    """

    def __init__(
        self,
        context: FrontendContext,
        protocol: RingProtocol[RequestT, ResponseT],
        nr_pages: int,
        answered: Callable[[int], None],
    ) -> None:
        """Raises XenError: there is no page or port to be had; nothing is held."""
        self._protocol = protocol
        self._codec = protocol.codec()
        self._answered = answered
        self._fail = context.on_failure
        self._room = asyncio.Event()
        self._closed = False
        self.asked: dict[int, asyncio.Future[ResponseT]] = {}
        with ExitStack() as held:
            share = held.enter_context(context.xen.open_share())
            pages = share.share(context.peer, nr_pages)
            held.callback(pages.close)
            self._ports = Ports(context.xen.open_evtchn())
            held.callback(self._ports.close)
            self._port = self._ports.listen(context.peer, self._service)
            self._ring = FrontRing(pages, self._codec.layout, nr_pages=nr_pages)
            self.place = RingPlace(pages.refs, self._port)
            self._held = held.pop_all()

    async def room(self) -> bool:
        """Wait until there is a slot.  False: there is no ring any more."""
        while not self._closed and not self._ring.free:
            self._room.clear()
            await self._room.wait()
        return not self._closed

    def put(self, request: RequestT) -> asyncio.Future[ResponseT]:
        """Put a request into the ring, which has room.  Returns what its response comes in.

        Raises:
            ValueError: a number does not fit its field, or its id is in flight.
        """
        ident = self._protocol.id_of_request(request)
        slot = self._codec.pack_request(request)
        if ident in self.asked:
            raise ValueError(f"a request with id {ident} is in flight already")
        answer: asyncio.Future[ResponseT] = asyncio.get_running_loop().create_future()
        self.asked[ident] = answer
        if self._ring.put([slot]):
            self._ports.notify(self._port)
        return answer

    def close(self, reason: Exception) -> None:
        """Fail what is in flight, and give page and port back."""
        self._closed = True
        for waiting in self.asked.values():
            if not waiting.done():
                waiting.set_exception(reason)
                # Nobody waits for some of them any more.
                waiting.exception()
        self.asked.clear()
        self._room.set()
        self._held.close()

    def _service(self) -> int:
        taken = 0
        try:
            while not self._closed:
                slots = self._ring.take()
                if not slots and not self._ring.final_check():
                    break
                taken += len(slots)
                for slot in slots:
                    self._take(self._codec.response(slot))
        except PeerError as error:
            self._fail(error)
        self._room.set()
        return taken

    def _take(self, response: ResponseT) -> None:
        ident = self._protocol.id_of_response(response)
        answer = self.asked.pop(ident, None)
        if answer is None:
            raise PeerError(f"an answer to request {ident:#x}, which is not in flight")
        self._answered(ident)
        if not answer.done():
            answer.set_result(response)
