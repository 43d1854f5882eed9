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
_c_read, _c_write, _from_buffer = lib.xenpy_duplex_read, lib.xenpy_duplex_write, ffi.from_buffer
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
        ended: `end` was called.
    """

    def __init__(
        self, incoming: StreamIn, outgoing: StreamOut, page: Memory, *, peer_live: int,
        wanted: int, asked: int, channels: EventChannels, port: Port,
    ) -> None:  # fmt: skip
        self.ended = False
        self._timeout: float | None = None
        self._first_wait = FOR_EVER
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
        self._channels = channels
        self._bell = channels.bind_unbound(DOMID_SELF)
        channels.bind_interdomain(DOMID_SELF, self._bell)
        self._receiving, self._sending = threading.Lock(), threading.Lock()
        self._followers = threading.Condition()
        self._ending = threading.Lock()
        self._scratch = ffi.new("uint8_t[]", SCRATCH)

    @property
    def timeout(self) -> float | None:
        """Seconds that a call may wait; None, as at first: for ever."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._timeout = seconds
        # A call looks before it asks for the time.
        self._first_wait = FOR_EVER if seconds is None else 0

    # Each begins with one call of C, and if all goes well there is nothing else: a piece of 64 KiB
    # costs as much as some fifty calls of Python.

    def recv(self, n: int) -> bytes:
        """Up to `n` bytes, 64 KiB at most, as soon as there is one; b"" when the peer is gone."""
        with self._receiving:
            scratch, limit = self._scratch, max(0, min(n, SCRATCH))
            count = _c_read(self._state, scratch, limit, self._first_wait)
            if count < 0:
                count = self._read(count, scratch, limit)
            content: bytes = ffi.buffer(scratch, count)[:]
            return content

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """Fill some of `buffer`, as soon as there is a byte; 0 when the peer is gone."""
        with self._receiving:
            out = _from_buffer("uint8_t[]", buffer, True)
            count = _c_read(self._state, out, len(out), self._first_wait)
            if count < 0:
                # A traceback would keep a bytearray from being resized.
                with out:
                    count = self._read(count, out, len(out))
            return count

    def sendall(self, data: bytes | bytearray | memoryview) -> None:
        """Return when all of it is in the ring.  `data` is not to be changed meanwhile; if this
        raises, nobody knows how much of it was sent.

        Raises:
            XenConnectionError: ECONNRESET, the peer is gone.
        """
        with self._sending:
            if isinstance(data, bytes):
                error = _c_write(self._state, data, len(data), self._first_wait)
                if error:
                    self._write(error, ffi.from_buffer("uint8_t[]", data))
            else:
                with ffi.from_buffer("uint8_t[]", data) as source:
                    error = _c_write(self._state, source, len(source), self._first_wait)
                    if error:
                        self._write(error, source)

    def flush(self) -> None:
        """Return when the peer has read everything that was sent; it may be gone then.

        Raises:
            XenConnectionError: ECONNRESET, it is gone and has not.
        """
        with self._sending:
            state, deadline = self._state, self._deadline()
            wait = self._first_wait
            while error := lib.xenpy_duplex_drain(state, wait):
                wait = self._again(error, state.out_seen, deadline)

    def lost(self) -> None:
        """The peer's domain is not there any more, and has notified nobody."""
        self._state.lost = 1
        with self._ending:
            if not self.ended:
                self._channels.notify(self._bell)

    def end(self) -> None:
        """Return when no call is in here any more; none will be.  Harmless when ended.

        Not for a signal's handler: it would wait for the call that it interrupts.
        """
        with self._ending:
            self.ended = True
            self._state.ended = 1
            if not self._channels.closed:
                self._channels.notify(self._bell)
        with self._receiving, self._sending:
            pass

    def _read(self, count: int, out: CData, limit: int) -> int:
        """Go on after the first call, which has come to `count`."""
        state, deadline = self._state, self._deadline()
        while count < 0:
            wait = self._again(count, state.in_seen, deadline)
            count = _c_read(state, out, limit, wait)
        return count

    def _write(self, error: int, source: CData) -> None:
        """Go on after the first call, which has come to `error`."""
        state, deadline = self._state, self._deadline()
        done, length = state.out_done, len(source)
        while error:
            wait = self._again(error, state.out_seen, deadline)
            error = _c_write(state, source + done, length - done, wait)
            done += state.out_done

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _again(self, result: int, seen: int, deadline: float | None) -> int:
        """Raise what a call has come to, or return how long to wait when it is called again."""
        state, error = self._state, -result
        if error == errno.EPIPE:
            raise _ended()
        if self.ended or state.lost:
            # Again for whoever had looked before, and waits only now: there is one bell for all.
            self._channels.notify(self._bell)
        if state.wake:
            state.wake = 0
            with self._followers:
                self._followers.notify_all()
        if error == errno.EPROTO:
            raise PeerError("the other side has put nonsense into the page")
        if error == errno.ECONNRESET:
            raise xen_error(error, "send", "the other side is gone")
        if error == errno.EAGAIN:
            self._follow(seen, deadline)
        elif error not in (errno.EINTR, errno.ETIMEDOUT):
            raise xen_error(error, "wait")
        if self.ended:
            raise _ended()
        if deadline is None:
            return FOR_EVER
        left = deadline - time.monotonic()
        if left <= 0:
            raise XenTimeoutError(errno.ETIMEDOUT, "wait", seconds=self._timeout)
        return min(LONGEST, math.ceil(left * 1000))

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


def _ended() -> XenError:
    return xen_error(errno.EPIPE, "vchan", "it is closed")
