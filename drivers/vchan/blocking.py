# SPDX-License-Identifier: MIT
"""A vchan for threads: calls that wait, named as a socket's.

    with blocking.listen(3, "data/echo") as server, server.accept() as vchan:    # in domain 0
        vchan.sendall(vchan.recv(4096))
    with blocking.connect(0, "data/echo") as vchan:                              # in domain 3
        ...

A wake-up costs a few calls here, and no turn of an event loop: the way to move much, or to
answer soon.
"""

from __future__ import annotations

import errno
import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from xenpy.drivers.vchan.channel import Channel, NativeVchan, VchanAccess
from xenpy.drivers.vchan.client import joined
from xenpy.drivers.vchan.control_thread import ControlThread
from xenpy.drivers.vchan.link import Buffer
from xenpy.drivers.vchan.nodes import absolute, publish, watch_domain, withdraw
from xenpy.drivers.vchan.protocol import NOTIFY_READ, NOTIFY_WRITE, Keys, Layout, Live
from xenpy.drivers.vchan.server import DEFAULT_SIZE
from xenpy.drivers.vchan.thread_ports import ThreadPorts
from xenpy.errors import PeerError, XenTimeoutError, xen_error
from xenpy.types import DomId

__all__ = ["Listener", "Vchan", "connect", "listen"]

FOR_EVER: Final = math.inf


class Vchan:
    """A connected channel; a context manager.

    One thread may receive while another sends; several that do the same take turns.  Any may
    call `close`, which ends what the others wait for.

    Every call but `close` raises what is listed here.

    Raises:
        XenTimeoutError: it waited longer than `timeout`.
        PeerError: the other side broke the protocol; there is nothing left to do but to close.
        XenConnectionError: EPIPE, this side is closed.

    Attributes:
        timeout: seconds that a call may wait; None, as at first: for ever.
        closed: it is, or will be at once.
    """

    def __init__(self, channel: Channel, ports: ThreadPorts, held: ExitStack) -> None:
        self.timeout: float | None = None
        self.closed = False
        self._channel = channel
        self._incoming, self._outgoing = channel.incoming, channel.outgoing
        self._ports = ports
        self._held = held
        self._receiving, self._sending = threading.Lock(), threading.Lock()
        self._lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Vchan {self._channel!r}>"

    def recv(self, n: int) -> bytes:
        """Up to `n` bytes, as soon as there is one; b"" when the other side is gone."""
        with self._receiving:
            self._refuse_if_closed()
            while not (content := self._incoming.read(n)):
                if n <= 0 or not self._readable():
                    return b""
            self._did(NOTIFY_READ)
            return content

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """Fill some of `buffer`, as soon as there is a byte; 0 when the other side is gone."""
        with self._receiving:
            self._refuse_if_closed()
            while not (count := self._incoming.readinto(buffer)):
                if not len(buffer) or not self._readable():
                    return 0
            self._did(NOTIFY_READ)
            return count

    def sendall(self, data: Buffer) -> None:
        """Return when all of it is in the ring.  `data` is not to be changed meanwhile; if this
        raises, nobody knows how much of it was sent.

        Raises:
            XenConnectionError: ECONNRESET, the other side is gone.
        """
        with self._sending, memoryview(data) as whole, whole.cast("B") as view:
            self._refuse_if_closed()
            self._refuse_if_gone()
            place = self._outgoing.write(view)
            if place:
                self._did(NOTIFY_WRITE)
            deadline = self._deadline() if place < len(view) else FOR_EVER
            while place < len(view):
                self._until(lambda: self._outgoing.unread < self._outgoing.size, deadline)
                self._refuse_if_gone()
                with view[place:] as rest:
                    place += self._outgoing.write(rest)
                self._did(NOTIFY_WRITE)

    def flush(self) -> None:
        """Return when the other side has read everything that was sent; it may be gone then.

        Raises:
            XenConnectionError: ECONNRESET, it is gone and has not.
        """
        with self._sending:
            self._refuse_if_closed()
            self._until(lambda: not self._outgoing.unread, self._deadline())
            if self._outgoing.unread:
                self._refuse_if_gone()

    def close(self) -> None:
        """Close both directions.  The other side may read on what was sent; `flush` waits for
        that.  Harmless when closed."""
        self.closed = True
        # Whoever waits looks round after a while, and leaves.
        with self._receiving, self._sending:
            self._channel.close()
            self._held.close()

    def lost(self) -> None:
        """The other side's domain is not there any more, and has notified nobody."""
        self._lost = True

    def _did(self, bit: int) -> None:
        self._ports.idle = 0
        self._channel.tell(bit)

    def _readable(self) -> bool:
        """Wait until there is something to read.  False: there never will be."""
        self._until(lambda: self._incoming.queued > 0, self._deadline(), NOTIFY_WRITE)
        return self._incoming.queued > 0

    def _until(
        self, condition: Callable[[], bool], deadline: float, bit: int = NOTIFY_READ
    ) -> None:
        """Return once it holds, or the other side is gone; `bit` is what may make it hold."""
        while True:
            seen = self._ports.fired
            self._channel.want(bit)
            # In this order: what a peer did before it went is found after that was seen.
            gone = self._gone()
            if condition() or gone:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise XenTimeoutError(errno.ETIMEDOUT, "vchan", seconds=self.timeout)
            self._ports.wait(seen, left)
            self._refuse_if_closed()

    def _gone(self) -> bool:
        if self._lost:
            return True
        live = self._channel.peer()
        if live is Live.NOT_YET:
            raise PeerError("a client that was here says that it has yet to come")
        return live is Live.GONE

    def _deadline(self) -> float:
        return FOR_EVER if self.timeout is None else time.monotonic() + self.timeout

    def _refuse_if_gone(self) -> None:
        if self._gone():
            raise xen_error(errno.ECONNRESET, "vchan", "the other side is gone")

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise xen_error(errno.EPIPE, "vchan", "it is closed")


class Listener:
    """A server; see `listen`.

    Attributes:
        path: where the keys are, absolute.
    """

    def __init__(
        self, domid: DomId, path: str, layout: Layout, control: ControlThread, xen: VchanAccess
    ) -> None:
        self._domid = domid
        self._layout = layout
        self._control = control
        self._xen = xen
        self._own = control.call(control.store.domid())
        self.path = absolute(path, self._own)
        self._vchan: Vchan | None = None
        self._offer: tuple[Channel, ThreadPorts, Keys] | None = self._make_offer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def accept(self, timeout: float | None = None) -> Vchan:
        """Wait for the next client.

        Args:
            timeout: seconds; None: for ever.

        Raises:
            XenTimeoutError: none has come.
            XenError: EBUSY, the connection before is not closed; or as `listen`.
            PeerError: a client has scribbled over the page; the next call offers another.
        """
        if self._vchan is not None and not self._vchan.closed:
            raise xen_error(errno.EBUSY, "accept", "the connection before is not closed")
        deadline = FOR_EVER if timeout is None else time.monotonic() + timeout
        while True:
            if self._offer is None:
                self._offer = self._make_offer()
            channel, ports, keys = self._offer
            try:
                self._await_client(channel, ports, deadline)
                of_use = channel.peer() is Live.HERE or channel.incoming.queued > 0
            except PeerError:
                self._end_offer()
                raise
            if of_use:
                break
            self._end_offer()
        self._offer = None
        held = ExitStack()
        held.callback(self._withdraw, keys)
        vchan = self._vchan = Vchan(channel, ports, held)
        held.callback(
            self._control.start(watch_domain(self._control.store, self._domid, vchan.lost))
        )
        return vchan

    def close(self) -> None:
        """Take the offer away, and close what `accept` has returned.  Harmless when closed."""
        if self._vchan is not None:
            self._vchan.close()
        self._end_offer()
        self._control.close()

    def _await_client(self, channel: Channel, ports: ThreadPorts, deadline: float) -> None:
        while True:
            seen = ports.fired
            if channel.peer() is not Live.NOT_YET:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise XenTimeoutError(errno.ETIMEDOUT, "accept", path=self.path)
            ports.wait(seen, left)

    def _make_offer(self) -> tuple[Channel, ThreadPorts, Keys]:
        ports = ThreadPorts(self._xen.open_evtchn())
        channel, keys = Channel.offer(self._xen, self._domid, self._layout, ports)
        try:
            store = self._control.store
            self._control.call(publish(store, self.path, keys, self._own, self._domid))
        except BaseException:
            channel.close()
            raise
        return channel, ports, keys

    def _end_offer(self) -> None:
        if self._offer is not None:
            (channel, _, keys), self._offer = self._offer, None
            channel.close()
            self._withdraw(keys)

    def _withdraw(self, keys: Keys) -> None:
        self._control.call(withdraw(self._control.store, self.path, keys))


def listen(
    domid: int,
    path: str,
    *,
    left: int = DEFAULT_SIZE,
    right: int = DEFAULT_SIZE,
    store: str | None = None,
    xen: VchanAccess | None = None,
) -> Listener:
    """A server for clients in domain `domid`, one at a time; a context manager.

    Args:
        domid, path, left, right, xen: as of `xenpy.drivers.vchan.listen`.
        store: where xenstored is, as `Store.open` takes it; by default it is found.

    Raises:
        ValueError: a size is out of range.
        XenError: ENOSPC, gntalloc gives no more pages; no XenStore, no Xen.
    """
    layout = Layout.of_sizes(left, right)
    control = ControlThread(f"vchan {path}", store)
    try:
        return Listener(DomId(domid), path, layout, control, xen or NativeVchan())
    except BaseException:
        control.close()
        raise


def connect(
    domid: int,
    path: str,
    *,
    timeout: float | None = 30.0,
    store: str | None = None,
    xen: VchanAccess | None = None,
) -> Vchan:
    """Connect to the server that domain `domid` has, or will have, at `path`.

    Args:
        domid, path, timeout, xen: as of `xenpy.drivers.vchan.open_connection`.
        store: as of `listen`.

    Raises:
        as `xenpy.drivers.vchan.open_connection`.
    """
    server, access = DomId(domid), xen or NativeVchan()
    where = absolute(path, server)

    def join(keys: Keys) -> tuple[Channel, ThreadPorts]:
        ports = ThreadPorts(access.open_evtchn())
        return Channel.join(access, server, keys, ports), ports

    control = ControlThread(f"vchan {where}", store)
    with ExitStack() as held:
        held.callback(control.close)
        channel, ports = control.call(joined(control.store, server, where, timeout, join))
        vchan = Vchan(channel, ports, held.pop_all())
    control.start(watch_domain(control.store, server, vchan.lost))
    return vchan
