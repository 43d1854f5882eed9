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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Final, Generic, Self, TypeAlias

from xenpy.backend import Keys
from xenpy.errors import XenError
from xenpy.frontend import Frontend, FrontendAccess, FrontendContext, NativeFrontend
from xenpy.frontend_life import FrontendLife
from xenpy.gnttab import GrantShare
from xenpy.granted_page import Asked, GrantedPage, ReturnedPages
from xenpy.paths import frontend_path
from xenpy.peer_keys import number
from xenpy.ring_asker import RingAsker
from xenpy.ring_keys import MAX_QUEUES, MAX_RING_PAGE_ORDER, TRANSPORT_KEYS, written
from xenpy.ring_protocol import RequestT, ResponseT, RingProtocol
from xenpy.types import DevId, DomId
from xenpy.wire import CAbi
from xenpy.xenstore import Store

__all__ = ["NOTHING", "Connection", "GrantedPage", "connect"]


class RingFrontend(Frontend, Generic[RequestT, ResponseT]):
    """The driver's half as `FrontendLife` sees it.

    Args:
        rings: how many to have, if the backend offers as many.
        on_change: see `connect`.
    """

    transport_keys = TRANSPORT_KEYS

    def __init__(
        self,
        context: FrontendContext,
        protocol: RingProtocol[RequestT, ResponseT],
        features: Keys,
        rings: int,
        on_change: OnChange,
    ) -> None:
        super().__init__(context)
        self._features = features
        self._protocol = protocol
        self._wanted = rings
        self._on_change = on_change
        self._draining = False
        self.pages = ReturnedPages()
        self.rings: Sequence[RingAsker[RequestT, ResponseT]] = ()
        self.backend: Mapping[str, str] = {}

    async def publish(self, backend: Mapping[str, str]) -> Keys:
        protocol = self._protocol
        order = min(number(backend, MAX_RING_PAGE_ORDER, 0), protocol.max_ring_page_order)
        count = max(1, min(number(backend, MAX_QUEUES, 1), self._wanted, protocol.max_rings))
        rings: list[RingAsker[RequestT, ResponseT]] = []
        self.rings = rings
        self._draining = False
        for ring in range(count):
            answered = partial(self._answered, ring)
            rings.append(RingAsker(self.context, protocol, 1 << order, answered))
        return {
            **self._features,
            **written([ring.place for ring in rings]),
            "protocol": CAbi.native().protocol,
        }

    async def connect(self, backend: Mapping[str, str]) -> None:
        self.backend = backend

    async def changed(self, backend: Mapping[str, str]) -> None:
        # A state that is written once more need not mean other keys.
        before, self.backend = self.backend, backend
        if backend != before:
            self._on_change(backend)

    async def drain(self) -> None:
        self._draining = True
        while waiting := [answer for ring in self.rings for answer in ring.asked.values()]:
            await asyncio.wait(waiting)

    async def disconnect(self, reason: Exception) -> None:
        rings, self.rings = self.rings, ()
        for ring in rings:
            ring.close(reason)
        self.pages.forget()

    @property
    def in_flight(self) -> set[Asked]:
        """The requests that are not answered."""
        return {(number, ident) for number, ring in enumerate(self.rings) for ident in ring.asked}

    async def put(self, request: RequestT, number: int) -> asyncio.Future[ResponseT] | None:
        """Put a request into a ring, once there is room.  Returns what its response comes in;
        None if the ring has gone meanwhile, and nothing was sent."""
        rings = self.rings
        if not rings:
            return None
        if not 0 <= number < len(rings):
            raise ValueError(f"there is no ring {number}: the device has {len(rings)}")
        if not await rings[number].room():
            return None
        if self._draining:
            raise XenError(errno.ESHUTDOWN, "request", path=self.context.ends.path)
        return rings[number].put(request)

    def _answered(self, ring: int, ident: int) -> None:
        self.pages.answered([(ring, ident)])


OnChange: TypeAlias = Callable[[Mapping[str, str]], None]


def _keep_still(_: Mapping[str, str]) -> None:
    """A frontend that looks at the keys when it needs them."""


@dataclass(frozen=True, slots=True)
class How:
    """How to connect; see `connect`."""

    devid: int
    domid: DomId | None
    features: Keys
    rings: int
    on_change: OnChange
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

    @property
    def rings(self) -> int:
        """How many there are; 0 while the backend is away."""
        return len(self._device.rings)

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

    async def request(self, request: RequestT, *, ring: int = 0) -> ResponseT:
        """Ask; the response with the same id.  Waits for a slot if the ring is full, and for the
        backend if it is away.

        A caller that stops waiting leaves the request to the backend: its id stays in flight.

        Args:
            ring: which, of the `rings` that there are; each has ids of its own.

        Raises:
            ValueError: a number does not fit its field, its id is in flight, or there is no such
                ring.
            XenTimeoutError: the backend does not come back.
            XenError: ECONNRESET, the backend started over, and nobody knows what was done;
                ESHUTDOWN, ENODEV, the device is closed or gone.
            PeerError: the backend broke the protocol; the device is closed.
        """
        while True:
            await self._life.ready(self._how.timeout)
            answer = await self._device.put(request, ring)
            if answer is not None:
                return await asyncio.shield(answer)

    def _make(self, context: FrontendContext) -> Frontend:
        how = self._how
        self._device = RingFrontend(context, self._protocol, how.features, how.rings, how.on_change)
        return self._device


TIMEOUT: Final = 30.0
NOTHING: Final[Keys] = MappingProxyType({})


def connect(
    protocol: RingProtocol[RequestT, ResponseT],
    devid: int = 0,
    *,
    domid: DomId | None = None,
    features: Keys = NOTHING,
    rings: int = 1,
    on_change: OnChange = _keep_still,
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
        rings: how many to have, if the backend offers so many.
        on_change: called with the backend's keys, `Connection.backend`, when they are others
            while connected.  It may raise PeerError, which closes the device.
        store: by default one of its own.
        xen: opens handles; `xenpy.testing` has others.
        timeout: seconds to become connected, and to be so again.
        take_over: connect although the nodes say that another frontend is, which may have
            died.  Entering raises what `FrontendLife` does.
    """
    how = How(
        devid, domid, features, rings, on_change, store, xen or NativeFrontend(), timeout, take_over
    )
    return Connection(protocol, how)
