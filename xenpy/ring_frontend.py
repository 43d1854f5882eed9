# SPDX-License-Identifier: MIT
"""The frontend of a protocol of your own: connect, grant a page, ask.

async with connect(ECHO) as device:
    with device.grant() as page:
        page[:5] = b"hello"
        answer = await device.request(Request(id=1, ref=page.ref, length=5))
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Final, Generic, Self

from xenpy.backend import Keys
from xenpy.errors import PeerError, XenError
from xenpy.frontend import Frontend, FrontendAccess, FrontendContext, NativeFrontend
from xenpy.frontend_life import FrontendLife
from xenpy.gnttab import GrantShare
from xenpy.granted_page import GrantedPage, ReturnedPages
from xenpy.paths import frontend_path
from xenpy.peer_keys import number
from xenpy.ports import Ports
from xenpy.ring import FrontRing
from xenpy.ring_protocol import RequestT, ResponseT, RingProtocol
from xenpy.types import DevId, DomId, GrantRef, Port
from xenpy.xenstore import Store

__all__ = ["NOTHING", "Connection", "GrantedPage", "connect"]


class RingFrontend(Frontend, Generic[RequestT, ResponseT]):
    """The driver's half as `FrontendLife` sees it."""

    transport_keys = re.compile(r"ring-ref\d*|ring-page-order|event-channel|protocol")

    def __init__(
        self,
        context: FrontendContext,
        protocol: RingProtocol[RequestT, ResponseT],
        features: Keys,
    ) -> None:
        super().__init__(context)
        self._features = features
        self._protocol = protocol
        self._codec = protocol.codec()
        self._held = ExitStack()
        self._asked: dict[int, asyncio.Future[ResponseT]] = {}
        self._room = asyncio.Event()
        self._draining = False
        self.pages = ReturnedPages()
        self._ring: FrontRing | None = None
        self._ports: Ports
        self._port: Port
        self.backend: Mapping[str, str] = {}

    async def publish(self, backend: Mapping[str, str]) -> Keys:
        offered = number(backend, "max-ring-page-order", 0)
        order = min(offered, self._protocol.max_ring_page_order)
        with ExitStack() as held:
            share = held.enter_context(self.context.xen.open_share())
            pages = share.share(self.context.peer, 1 << order)
            held.callback(pages.close)
            self._ports = Ports(self.context.xen.open_evtchn())
            held.callback(self._ports.close)
            self._port = self._ports.listen(self.context.peer, self._service)
            self._ring = FrontRing(pages, self._codec.layout, nr_pages=1 << order)
            self._held = held.pop_all()
        self._draining = False
        return {
            **self._features,
            **_ring_keys(pages.refs),
            "event-channel": int(self._port),
            "protocol": self._codec.abi.protocol,
        }

    async def connect(self, backend: Mapping[str, str]) -> None:
        self.backend = backend

    async def drain(self) -> None:
        self._draining = True
        while self._asked:
            await asyncio.wait(list(self._asked.values()))

    async def disconnect(self, reason: Exception) -> None:
        self._ring = None
        for waiting in self._asked.values():
            if not waiting.done():
                waiting.set_exception(reason)
                # Nobody waits for some of them any more.
                waiting.exception()
        self._asked.clear()
        self.pages.forget()
        self._room.set()
        self._held.close()

    @property
    def in_flight(self) -> set[int]:
        """The ids of requests that are not answered."""
        return set(self._asked)

    async def put(self, request: RequestT) -> asyncio.Future[ResponseT] | None:
        """Put a request into the ring, once there is room.  Returns what its response comes in;
        None if the ring has gone meanwhile, and nothing was sent."""
        ident = self._protocol.id_of_request(request)
        slot = self._codec.pack_request(request)
        ring = self._ring
        while ring is not None and not ring.free:
            self._room.clear()
            await self._room.wait()
            ring = self._ring
        if ring is None:
            return None
        if self._draining:
            raise XenError(errno.ESHUTDOWN, "request", path=self.context.ends.path)
        if ident in self._asked:
            raise ValueError(f"a request with id {ident} is in flight already")
        answer: asyncio.Future[ResponseT] = asyncio.get_running_loop().create_future()
        self._asked[ident] = answer
        if ring.put([slot]):
            self._ports.notify(self._port)
        return answer

    def _service(self) -> int:
        taken = 0
        ring = self._ring
        try:
            while ring is not None:
                slots = ring.take()
                if not slots and not ring.final_check():
                    break
                taken += len(slots)
                for slot in slots:
                    self._answered(self._codec.response(slot))
        except PeerError as error:
            self.context.on_failure(error)
        self._room.set()
        return taken

    def _answered(self, response: ResponseT) -> None:
        ident = self._protocol.id_of_response(response)
        answer = self._asked.pop(ident, None)
        if answer is None:
            raise PeerError(f"an answer to request {ident:#x}, which is not in flight")
        self.pages.answered([ident])
        if not answer.done():
            answer.set_result(response)


def _ring_keys(refs: Sequence[GrantRef]) -> Keys:
    """A ring of one page as every backend knows it, one of several as blkif.h has it."""
    if len(refs) == 1:
        return {"ring-ref": int(refs[0])}
    pages = {f"ring-ref{page}": int(ref) for page, ref in enumerate(refs)}
    return {"ring-page-order": len(refs).bit_length() - 1, **pages}


@dataclass(frozen=True, slots=True)
class How:
    """How to connect; see `connect`."""

    devid: int
    domid: DomId | None
    features: Keys
    store: Store | None
    xen: FrontendAccess
    timeout: float
    take_over: bool


class Connection(Generic[RequestT, ResponseT]):
    """A device of this domain, connected; see `connect`."""

    def __init__(self, protocol: RingProtocol[RequestT, ResponseT], how: How) -> None:
        self._protocol = protocol
        self._how = how
        self._held = AsyncExitStack()
        self._share: GrantShare
        self._life: FrontendLife
        self._device: RingFrontend[RequestT, ResponseT]

    async def __aenter__(self) -> Self:
        how = self._how
        async with AsyncExitStack() as held:
            store = how.store
            if store is None:
                store = await held.enter_async_context(Store.open())
            domid = await store.domid() if how.domid is None else how.domid
            path = frontend_path(domid, self._protocol.name, DevId(how.devid))
            # Closed after the life: a page that is granted outlives all that may look at it.
            self._share = held.enter_context(how.xen.open_share())
            self._life = FrontendLife(
                store, path, self._make, xen=how.xen, timeout=how.timeout, take_over=how.take_over
            )
            await held.enter_async_context(self._life)
            self._held = held.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._held.aclose()

    @property
    def backend(self) -> Mapping[str, str]:
        """The keys that the backend has published: hostile, as `xenpy.peer_keys` takes them."""
        return self._device.backend

    def grant(self, *, writable: bool = True) -> GrantedPage:
        """A page that the backend may read, and write if `writable`.

        It is given back at the end of its `with`; if requests are in flight then, whose callers
        have stopped waiting, once these are answered.

        Raises:
            XenError: ENOSPC, there is no page to be had.
        """
        device = self._device
        pages = self._share.share(device.context.peer, 1, writable=writable)
        return GrantedPage(pages, lambda it: device.pages.give_back(it, device.in_flight))

    async def request(self, request: RequestT) -> ResponseT:
        """Ask; the response with the same id.  Waits for a slot if the ring is full, and for the
        backend if it is away.

        A caller that stops waiting leaves the request to the backend: its id stays in flight.

        Raises:
            ValueError: a number does not fit its field, or its id is in flight.
            XenTimeoutError: the backend does not come back.
            XenError: ECONNRESET, the backend started over, and nobody knows what was done;
                ESHUTDOWN, ENODEV, the device is closed or gone.
            PeerError: the backend broke the protocol; the device is closed.
        """
        while True:
            await self._life.ready(self._how.timeout)
            answer = await self._device.put(request)
            if answer is not None:
                return await asyncio.shield(answer)

    def _make(self, context: FrontendContext) -> Frontend:
        self._device = RingFrontend(context, self._protocol, self._how.features)
        return self._device


TIMEOUT: Final = 30.0
NOTHING: Final[Keys] = MappingProxyType({})


def connect(
    protocol: RingProtocol[RequestT, ResponseT],
    devid: int = 0,
    *,
    domid: DomId | None = None,
    features: Keys = NOTHING,
    store: Store | None = None,
    xen: FrontendAccess | None = None,
    timeout: float = TIMEOUT,
    take_over: bool = False,
) -> Connection[RequestT, ResponseT]:
    """Connect to a device; an async context manager.

    Args:
        protocol: its kind, and what is spoken.
        devid: its number.
        domid: whose it is; by default this domain's.
        features: keys to publish for the backend.
        store: by default one of its own.
        xen: opens handles; `xenpy.testing` has others.
        timeout: seconds to become connected, and to be so again.
        take_over: connect although the nodes say that another frontend is, which may have
            died.  Entering raises what `FrontendLife` does.
    """
    how = How(devid, domid, features, store, xen or NativeFrontend(), timeout, take_over)
    return Connection(protocol, how)
