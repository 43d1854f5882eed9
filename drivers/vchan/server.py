# SPDX-License-Identifier: MIT
"""The server of a vchan: offer a channel, hand it out when the client has come, offer another.

A channel has one client in its life, as one of libxenvchan's server has unless it is made
persistent: a client that comes back finds other keys, fresh rings, and nothing of what the one
before it has left behind.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self

from xenpy.drivers.vchan.channel import Channel, NativeVchan, VchanAccess
from xenpy.drivers.vchan.link import Link
from xenpy.drivers.vchan.nodes import absolute, publish, watch_domain, withdraw
from xenpy.drivers.vchan.protocol import Keys, Layout, Live
from xenpy.drivers.vchan.streams import VchanReader, VchanWriter
from xenpy.errors import PeerError
from xenpy.ports import Ports
from xenpy.types import DomId
from xenpy.xenstore import Store

__all__ = ["DEFAULT_SIZE", "Server", "listen"]

DEFAULT_SIZE: Final = 64 << 10
"""Bytes of a ring, unless told otherwise: 16 pages."""


class _Offer:
    """A channel that no client has taken yet.

    Attributes:
        channel, keys: what is offered, and what says so in XenStore.
        taken: set when a client has come, or the page says what cannot be.
    """

    def __init__(self, xen: VchanAccess, domid: DomId, layout: Layout) -> None:
        self.taken = asyncio.Event()
        ports = Ports(xen.open_evtchn())
        self.channel, self.keys = Channel.offer(xen, domid, layout, ports)
        self.channel.on_event = self._service

    def _service(self) -> int:
        if self.taken.is_set():
            return 0
        try:
            here = self.channel.peer() is not Live.NOT_YET
        except PeerError:
            here = True
        if here:
            self.taken.set()
        return int(here)

    def is_of_use(self) -> bool:
        """Somebody is there, or has left something to read.

        Raises:
            PeerError: the page makes no sense.
        """
        return self.channel.peer() is Live.HERE or self.channel.incoming.queued > 0


class Server:
    """See `listen`.

    Attributes:
        domid: the client's domain.
        path: where the keys are, absolute; once entered.
    """

    def __init__(
        self, domid: DomId, path: str, layout: Layout, store: Store | None, xen: VchanAccess
    ) -> None:
        self.domid = domid
        self.path = path
        self._layout = layout
        self._given = store
        self._xen = xen
        self._offer: _Offer | None = None
        self._keys: Keys | None = None
        self._link: Link | None = None
        self._held = AsyncExitStack()
        self._store: Store
        self._own: DomId

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as held:
            store = self._given
            if store is None:
                store = await held.enter_async_context(Store.open())
            self._store = store
            self._own = await store.domid()
            self.path = absolute(self.path, self._own)
            await self._make_offer()
            self._held = held.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async with self._held:
            await self._end()

    def __repr__(self) -> str:
        state = "closed" if self._keys is None else "offered" if self._offer else "connected"
        return f"<Server {self.path} for domain {self.domid}, {state}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[VchanReader, VchanWriter]:
        """As `accept`."""
        return await self.accept()

    async def accept(self) -> tuple[VchanReader, VchanWriter]:
        """Wait for the next client.  While there is one, this waits for its end first.

        If this is cancelled, the next call goes on.

        Raises:
            PeerError: a client has scribbled over the page; the next call offers another.
            XenError: as entering.
        """
        while True:
            if self._link is not None:
                await self._link.ended()
                await self._end()
            if self._offer is None:
                await self._make_offer()
            offer = self._offer
            assert offer is not None
            await offer.taken.wait()
            try:
                if not offer.is_of_use():
                    await self._end()
                    continue
            except PeerError:
                await self._end()
                raise
            self._offer = None
            link = self._link = Link(offer.channel)
            link.guard = asyncio.create_task(
                watch_domain(self._store, self.domid, link.lost), name=f"vchan {self.path}"
            )
            return VchanReader(link), VchanWriter(link, self.domid, self.path)

    async def _make_offer(self) -> None:
        offer = _Offer(self._xen, self.domid, self._layout)
        try:
            await publish(self._store, self.path, offer.keys, self._own, self.domid)
        except BaseException:
            offer.channel.close()
            raise
        self._offer, self._keys = offer, offer.keys

    async def _end(self) -> None:
        """Close what there is of a channel, and take its keys away."""
        offer, self._offer = self._offer, None
        link = self._link
        if offer is not None:
            offer.channel.close()
        if link is not None:
            link.abort()
            if link.guard is not None:
                await asyncio.wait([link.guard])
            self._link = None
        if self._keys is not None:
            await withdraw(self._store, self.path, self._keys)
            self._keys = None


def listen(
    domid: int,
    path: str,
    *,
    left: int = DEFAULT_SIZE,
    right: int = DEFAULT_SIZE,
    store: Store | None = None,
    xen: VchanAccess | None = None,
) -> Server:
    """A server for clients in domain `domid`; an async context manager.

        async with listen(3, "data/echo") as server:
            async for reader, writer in server:
                ...

    It has one client at a time: the next is taken when the connection before is closed.  Leaving
    closes what there is.

    Args:
        domid: whose clients: no other domain can connect.
        path: in XenStore, where the client looks; if relative, below this domain's home.
        left, right: bytes, at least, of the ring that the client writes and of the one that it
            reads; 1 MiB at most.  Each is made a power of two; small ones fit into one page.
        store: by default one of its own.
        xen: opens handles; `xenpy.testing` has others.

    Raises:
        ValueError: a size is out of range.
        XenError: on entering: ENOSPC, gntalloc gives no more pages; no XenStore, no Xen.
    """
    layout = Layout.of_sizes(left, right)
    return Server(DomId(domid), path, layout, store, xen or NativeVchan())
