# SPDX-License-Identifier: MIT
"""One channel, connected or on offer: its pages, rings and port, and vchan's notify protocol.

Synchronous: what waits is `xenpy.drivers.vchan.link`.

A side that finds nothing to read (or no room to write) sets a bit in a byte of the page, looks
again, and sleeps.  The other side, once it has written (or read), takes the bit away and
notifies if it was set.  So whoever goes on finding work never hears of the other.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, Protocol

from xenpy.drivers.vchan.protocol import (
    CLIENT,
    NOTIFY_WRITE,
    SERVER,
    Keys,
    Layout,
    Live,
    RingPlace,
    Side,
    parse_page,
)
from xenpy.errors import PeerError, XenError, xen_error
from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantShare, GrantTable
from xenpy.memory import Memory
from xenpy.ring import StreamIn, StreamOut
from xenpy.shared_byte import SharedByte
from xenpy.types import DomId, GrantRef, Port

__all__ = ["Channel", "ChannelPorts", "NativeVchan", "VchanAccess"]

LIVES: Final = (Live.GONE, Live.HERE, Live.NOT_YET)
"""By its number, and sooner than an enum finds it: for each piece that is written."""
LIMIT: Final = "/sys/module/xen_gntalloc/parameters/limit"


class VchanAccess(Protocol):
    """How a channel opens its handles; `xenpy.testing` substitutes fakes here."""

    def open_share(self) -> GrantShare: ...
    def open_grants(self) -> GrantTable: ...
    def open_evtchn(self) -> EventChannels: ...


class NativeVchan:
    """`VchanAccess` of the running system."""

    def open_share(self) -> GrantShare:
        return GrantShare()

    def open_grants(self) -> GrantTable:
        return GrantTable()

    def open_evtchn(self) -> EventChannels:
        return EventChannels()


class ChannelPorts(Protocol):
    """A channel's port: `xenpy.ports.Ports` in an event loop."""

    def listen(self, domid: DomId, service: Callable[[], int]) -> Port: ...
    def bind(self, domid: DomId, remote_port: Port, service: Callable[[], int]) -> Port: ...
    def notify(self, port: Port) -> None: ...
    def close(self) -> None: ...


class Channel:
    """One side of a channel.

    Attributes:
        side, layout: which, and how large the rings are.
        incoming, outgoing: the ring that we read and the one that we write; closed with this.
        page, port: where `side` says what is, and our end of the event channel.
        on_event: called when the peer has notified us; returns how much it found to do, and
            must not raise.
    """

    def __init__(self, side: Side, ports: ChannelPorts, held: ExitStack) -> None:
        self.side = side
        self.on_event: Callable[[], int] = lambda: 0
        self._ports = ports
        self._held = held
        self.closed = False

    @classmethod
    def offer(
        cls, xen: VchanAccess, domid: DomId, layout: Layout, ports: ChannelPorts
    ) -> tuple[Channel, Keys]:
        """The server's side, for a client in `domid`, and what to publish; closes `ports`.

        Raises:
            XenError: there is no page or port to be had; nothing is held.
        """
        with ExitStack() as held:
            held.callback(ports.close)
            self = cls(SERVER, ports, held)
            port = ports.listen(domid, self._fired)
            share = held.enter_context(xen.open_share())
            try:
                page = share.share(domid, 1, notify_offset=SERVER.live, notify_port=port)
                left, right = (
                    share.share(domid, ring.pages) if ring.pages else None
                    for ring in (layout.left, layout.right)
                )
            except XenError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise _no_pages(error, layout) from error
            grants = [ref for pages in (left, right) if pages is not None for ref in pages.refs]
            start = layout.pack(grants)
            with page.view(16, len(start)) as view:
                view[:] = start
            self._attach(layout, page, left, right, port)
            self._held = held.pop_all()
        return self, Keys(page.refs[0], port)

    @classmethod
    def join(cls, xen: VchanAccess, domid: DomId, keys: Keys, ports: ChannelPorts) -> Channel:
        """The client's side of what a server in `domid` has published; closes `ports`.

        Raises:
            XenError: EINVAL, the port or the page is not there any more, or another client's;
                ECONNREFUSED, the page is there, and the server is not.  Nothing is held.
            PeerError: the page makes no sense; nothing is held.
        """
        with ExitStack() as held:
            held.callback(ports.close)
            self = cls(CLIENT, ports, held)
            # First of all: it fails when another client is there, and nothing has happened yet.
            port = ports.bind(domid, keys.port, self._fired)
            table = held.enter_context(xen.open_grants())
            page = table.map(domid, [keys.ring_ref], notify_offset=CLIENT.live, notify_port=port)
            try:
                with page.view() as view:
                    layout, left_refs, right_refs = parse_page(bytes(view))
                left = _map(table, domid, left_refs, writable=True)
                right = _map(table, domid, right_refs, writable=False)
            except PeerError:
                # Keys outlive their server for a moment; it has left nothing, or the next one has
                # the page for something else.
                if SharedByte(page, CLIENT.peer_live).get() == Live.GONE:
                    raise _refused(domid) from None
                raise
            self._attach(layout, page, left, right, port)
            if self.peer() is not Live.HERE:
                raise _refused(domid)
            self._live.put(Live.HERE)
            self.want(NOTIFY_WRITE)
            ports.notify(port)
            self._held = held.pop_all()
        return self

    def _attach(
        self, layout: Layout, page: Memory, left: Memory | None, right: Memory | None, port: Port
    ) -> None:
        side = self.side
        self.layout = layout
        self.page = page
        self.port = port
        self._live = SharedByte(page, side.live)
        self._peer_live = SharedByte(page, side.peer_live)
        self._wanted = SharedByte(page, side.wanted)
        self._asked = SharedByte(page, side.asked)
        rings: list[tuple[RingPlace, Memory | None]] = [(layout.left, left), (layout.right, right)]
        if side is CLIENT:
            rings.reverse()
        (read, read_in), (written, written_in) = rings
        self.incoming = StreamIn(
            page, data=read.offset, size=read.size, data_in=read_in,
            cons=side.read, prod=side.read + 4,
        )  # fmt: skip
        self.outgoing = StreamOut(
            page, data=written.offset, size=written.size, data_in=written_in,
            cons=side.written, prod=side.written + 4,
        )  # fmt: skip

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.incoming!r}, {self.outgoing!r}"
        return f"<Channel {self.side.name} {state}>"

    def _fired(self) -> int:
        return self.on_event()

    def peer(self) -> Live:
        """Whether the other side is there.

        Raises:
            PeerError: it says something else.
        """
        value = self._peer_live.get()
        if value > (2 if self.side is SERVER else 1):
            raise PeerError(f"the other side says that its live byte is {value}")
        return LIVES[value]

    def want(self, bits: int) -> None:
        """Be told when the peer has done that; what it did before is to be looked for now."""
        self._wanted.add(bits)

    def tell(self, bits: int) -> None:
        """Notify the peer, if it wants to know that we have done one of these."""
        if self._asked.take(bits):
            self._ports.notify(self.port)

    def close(self) -> None:
        """Tell the peer, which may read on what was written, and give everything back."""
        if self.closed:
            return
        self.closed = True
        self._live.put(Live.GONE)
        self._ports.notify(self.port)
        self._held.close()


def _refused(domid: DomId) -> XenError:
    return xen_error(errno.ECONNREFUSED, "vchan", "the server has closed", domid=domid)


def _map(table: GrantTable, domid: DomId, refs: list[GrantRef], *, writable: bool) -> Memory | None:
    """The pages of a ring that has some.

    Raises:
        PeerError: they were not granted.
    """
    if not refs:
        return None
    try:
        return table.map(domid, refs, writable=writable)
    except XenError as error:
        if error.errno != errno.EINVAL:
            raise
        raise PeerError(f"the server's list of grants leads nowhere: {error}") from error


def _no_pages(error: XenError, layout: Layout) -> XenError:
    """The same error, with what an operator can do about it."""
    pages = 1 + layout.nr_grants
    hint = f"the channel needs {pages} pages: raise {LIMIT}, or make its rings smaller"
    return xen_error(errno.ENOSPC, error.operation, hint, **error.arguments)
