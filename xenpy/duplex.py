# SPDX-License-Identifier: MIT
"""Two byte rings between threads, waited for in C: vchan's, and whatever has its notify bytes.

Each call is one of C, the wait for an event included; `include/xenpy/duplex.h` has the rules.
"""

from __future__ import annotations

import errno
import math
import threading
import time
from typing import Final

from xenpy._ffi.stable import ffi, lib
from xenpy._ffi.types import CData
from xenpy.errors import PeerError, XenError, XenTimeoutError, xen_error
from xenpy.evtchn import EventChannels
from xenpy.memory import Memory
from xenpy.ring import StreamIn, StreamOut
from xenpy.types import DOMID_SELF, Port

__all__ = ["Duplex"]

FOLLOW: Final = 0.5
"""Seconds after which a thread that is not woken looks again all the same."""
FOR_EVER: Final = -1
LONGEST: Final = 1 << 30
"""Milliseconds."""
_c_read, _c_write = lib.xenpy_duplex_read, lib.xenpy_duplex_write
SCRATCH: Final = 64 << 10
"""The most that `recv` gives at a time."""


class Duplex:
    """One side.  One thread may receive while another sends; several that do the same take turns.

    Args:
        incoming, outgoing: the rings; nobody else may use them.
        page: what holds the three bytes that follow.
        peer_live: says whether the peer is there: 1, or 0 when it has gone.
        wanted, asked: what we, and what the peer, want to be told of: 1, that something was
            written; 2, that something was read.
        channels, port: a handle with this port alone; nobody else may wait for it.  It gets two
            more, a bell that this side rings itself.

    Every call but `end` and `lost` raises what is listed here.

    Raises:
        XenTimeoutError: it waited longer than `timeout`.
        PeerError: the peer has put nonsense into the page.
        XenConnectionError: EPIPE, `end` was called.

    Attributes:
        timeout: seconds that a call may wait; None, as at first: for ever.
        ended: `end` was called.
    """

    def __init__(
        self, incoming: StreamIn, outgoing: StreamOut, page: Memory, *, peer_live: int,
        wanted: int, asked: int, channels: EventChannels, port: Port,
    ) -> None:  # fmt: skip
        self.timeout: float | None = None
        self.ended = False
        native, events = channels.native()
        calls, state = ffi.new("struct xenpy_calls *"), ffi.new("struct xenpy_duplex *")
        native.xenpy_calls_init(calls, ffi.NULL, events)
        state.calls, state.port = calls, port
        state.incoming, state.in_data, state.in_ours, state.in_theirs = incoming.native()
        state.outgoing, state.out_data, state.out_ours, state.out_theirs = outgoing.native()
        state.peer_live = page.pointer(peer_live)
        state.wanted, state.asked = page.pointer(wanted), page.pointer(asked)
        self._state = state
        self._owners = incoming, outgoing, page, channels, calls
        self._incoming, self._channels = incoming, channels
        self._bell = channels.bind_unbound(DOMID_SELF)
        channels.bind_interdomain(DOMID_SELF, self._bell)
        self._receiving, self._sending = threading.Lock(), threading.Lock()
        self._followers = threading.Condition()
        self._lost = False
        self._seen_in, self._seen_out = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        self._done = ffi.new("size_t *")
        self._scratch = ffi.new("uint8_t[]", SCRATCH)

    # Each begins with one call of C, and if all goes well there is nothing else: a piece of 64 KiB
    # costs as much as some fifty calls of Python.

    def recv(self, n: int) -> bytes:
        """Up to `n` bytes, 64 KiB at most, as soon as there is one; b"" when the peer is gone."""
        with self._receiving:
            count = self._read(self._scratch, min(n, SCRATCH))
            content: bytes = ffi.buffer(self._scratch, count)[:]
            return content

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """Fill some of `buffer`, as soon as there is a byte; 0 when the peer is gone."""
        with self._receiving:
            out = ffi.from_buffer("uint8_t[]", buffer, True)
            try:
                return self._read(out, len(out))
            except BaseException:
                # Its frames would keep a bytearray from being resized.
                ffi.release(out)
                raise

    def sendall(self, data: bytes | bytearray | memoryview) -> None:
        """Return when all of it is in the ring.  `data` is not to be changed meanwhile; if this
        raises, nobody knows how much of it was sent.

        Raises:
            XenConnectionError: ECONNRESET, the peer is gone.
        """
        with self._sending:
            if isinstance(data, bytes):
                self._write(data, len(data))
            else:
                with ffi.from_buffer("uint8_t[]", data) as source:
                    self._write(source, len(source))

    def flush(self) -> None:
        """Return when the peer has read everything that was sent; it may be gone then.

        Raises:
            XenConnectionError: ECONNRESET, it is gone and has not.
        """
        with self._sending:
            state, seen = self._state, self._seen_out
            deadline = self._begun()
            while error := lib.xenpy_duplex_drain(state, self._wait(deadline), seen):
                self._not_sent(-error, deadline)

    def lost(self) -> None:
        """The peer's domain is not there any more, and has notified nobody."""
        self._lost = True
        if not self.ended:
            self._channels.notify(self._bell)

    def end(self) -> None:
        """Return when no call is in here any more; none will be.  Harmless when ended."""
        if self.ended:
            return
        self.ended = True
        self._channels.notify(self._bell)
        with self._receiving, self._sending:
            pass

    def _read(self, out: CData, limit: int) -> int:
        deadline = None
        wait = FOR_EVER
        if self.ended or self._lost or self.timeout is not None or limit <= 0:
            deadline = self._begun()
            wait = self._wait(deadline)
            if limit <= 0:
                return 0
        state, seen = self._state, self._seen_in
        while (count := _c_read(state, out, limit, wait, seen)) < 0:
            self._again(-count, seen[0], deadline)
            if self._lost and not self._incoming.queued:
                return 0
            wait = self._wait(deadline)
        return count

    def _write(self, source: CData | bytes, length: int) -> None:
        deadline = None
        wait = FOR_EVER
        if self.ended or self._lost or self.timeout is not None:
            deadline = self._begun()
            wait = self._wait(deadline)
            if self._lost:
                raise _gone()
        state, seen, done = self._state, self._seen_out, self._done
        done[0] = 0
        while error := _c_write(state, source, length, done, wait, seen):
            self._not_sent(-error, deadline)
            wait = self._wait(deadline)

    def _begun(self) -> float | None:
        """When the call is to be over."""
        if self.ended:
            raise _ended()
        return None if self.timeout is None else time.monotonic() + self.timeout

    def _wait(self, deadline: float | None) -> int:
        """Milliseconds to wait: none for a peer that is lost; -1: for ever."""
        if self._lost:
            return 0
        if deadline is None:
            return FOR_EVER
        return max(0, min(LONGEST, math.ceil((deadline - time.monotonic()) * 1000)))

    def _not_sent(self, error: int, deadline: float | None) -> None:
        if error == errno.ECONNRESET:
            raise _gone()
        self._again(error, self._seen_out[0], deadline)
        if self._lost:
            raise _gone()

    def _again(self, error: int, seen: int, deadline: float | None) -> None:
        """Raise what a call has come to, or return to have it called again."""
        if self.ended or self._lost:
            # Again for whoever had looked before, and waits only now: there is one bell for all.
            self._channels.notify(self._bell)
        if self._state.wake:
            self._state.wake = 0
            with self._followers:
                self._followers.notify_all()
        if error == errno.EPROTO:
            raise PeerError("the other side has put nonsense into the page")
        if error == errno.EAGAIN:
            self._follow(seen, deadline)
        elif error not in (errno.EINTR, errno.ETIMEDOUT):
            raise xen_error(error, "wait")
        if self.ended:
            raise _ended()
        if deadline is not None and time.monotonic() >= deadline:
            raise XenTimeoutError(errno.ETIMEDOUT, "wait", seconds=self.timeout)

    def _follow(self, seen: int, deadline: float | None) -> None:
        """Another thread waits for the port: sleep until it has something to tell."""
        left = FOLLOW if deadline is None else max(0.0, deadline - time.monotonic())
        with self._followers:
            lib.xenpy_duplex_follow(self._state, 1)
            try:
                if not self.ended and lib.xenpy_duplex_may_sleep(self._state, seen):
                    self._followers.wait(min(left, FOLLOW))
            finally:
                lib.xenpy_duplex_follow(self._state, -1)


def _gone() -> XenError:
    return xen_error(errno.ECONNRESET, "send", "the other side is gone")


def _ended() -> XenError:
    return xen_error(errno.EPIPE, "vchan", "it is closed")
