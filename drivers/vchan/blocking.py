# SPDX-License-Identifier: MIT
"""A vchan for threads: calls that wait, named as a socket's.

    with blocking.listen(3, "data/echo") as server, server.accept() as vchan:    # in domain 0
        vchan.sendall(vchan.recv(4096))
    with blocking.connect(0, "data/echo") as vchan:                              # in domain 3
        ...

A call is one of C here, the wait included, where an event loop takes a turn of its own: the way
to move much, or to answer soon.
"""

from __future__ import annotations

import errno
import math
import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from xenpy.drivers.vchan.channel import Channel, NativeVchan, VchanAccess
from xenpy.drivers.vchan.client import joined
from xenpy.drivers.vchan.control_thread import ControlThread
from xenpy.drivers.vchan.nodes import absolute, publish, watch_domain, withdraw
from xenpy.drivers.vchan.protocol import Keys, Layout, Live
from xenpy.drivers.vchan.server import DEFAULT_SIZE
from xenpy.drivers.vchan.thread_ports import ThreadPorts
from xenpy.duplex import Duplex
from xenpy.errors import PeerError, XenTimeoutError, xen_error
from xenpy.types import DomId

__all__ = ["Listener", "Vchan", "connect", "listen"]

FOR_EVER: Final = math.inf


class Vchan(Duplex):
    """A connected channel; a context manager.

    Its calls are `Duplex`'s: `recv`, `recv_into`, `sendall` and `flush`, which wait for
    `timeout` seconds at most.

    Attributes:
        held: what goes when it is closed, the channel among it.
    """

    def __init__(self, channel: Channel, ports: ThreadPorts) -> None:
        side = channel.side
        super().__init__(
            channel.incoming, channel.outgoing, channel.page, peer_live=side.peer_live,
            wanted=side.wanted, asked=side.asked, channels=ports.channels, port=channel.port,
        )  # fmt: skip
        self._channel = channel
        self._closing = threading.Lock()
        self.held = ExitStack()

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

    def close(self) -> None:
        """Close both directions, and end what other threads wait for.  The other side may read on
        what was sent; `flush` waits for that.  Harmless when closed.

        Not for a signal's handler: see `Duplex.end`.
        """
        with self._closing:
            self.end()
            self.held.close()


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
        if self._vchan is not None and not self._vchan.ended:
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
        with ExitStack() as held:
            held.callback(self._withdraw, keys)
            held.callback(channel.close)
            vchan = Vchan(channel, ports)
            watching = watch_domain(self._control.store, self._domid, vchan.lost)
            held.callback(self._control.start(watching))
            vchan.held = held.pop_all()
        self._vchan = vchan
        return vchan

    def close(self) -> None:
        """Take the offer away, and close what `accept` has returned.  Harmless when closed."""
        if self._vchan is not None:
            self._vchan.close()
        self._end_offer()
        self._control.close()

    def _await_client(self, channel: Channel, ports: ThreadPorts, deadline: float) -> None:
        while True:
            if channel.peer() is not Live.NOT_YET:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise XenTimeoutError(errno.ETIMEDOUT, "accept", path=self.path)
            ports.wait(None if left == FOR_EVER else left)

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
        held.callback(channel.close)
        vchan = Vchan(channel, ports)
        held.callback(control.start(watch_domain(control.store, server, vchan.lost)))
        vchan.held = held.pop_all()
    return vchan
