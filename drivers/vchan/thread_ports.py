# SPDX-License-Identifier: MIT
"""The port of a channel that threads wait for, without an event loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from xenpy.evtchn import EventChannels
from xenpy.runtime import SPURIOUS_ALLOWED, hold_off
from xenpy.types import DomId, Port

__all__ = ["SLICE", "ThreadPorts"]

SLICE: Final = 0.5
"""Seconds after which somebody who waits looks round all the same: for a close, and for a peer
whose domain is gone, of which no event tells."""


class ThreadPorts:
    """A handle with one port, for any number of threads.

    Whoever waits first waits for all: two that read the descriptor would take each other's
    events.

    Args:
        channels: the handle; `close` closes it.

    Attributes:
        fired: how many events there were.  Look at it before you look at the ring: `wait`
            returns at once if it is another by then.
        idle: how many of them brought nothing; 0 is written by whoever found something.
    """

    def __init__(self, channels: EventChannels) -> None:
        self._channels = channels
        self._turn = threading.Condition()
        self._somebody_waits = False
        self.fired = 0
        self.idle = 0

    def listen(self, domid: DomId, service: Callable[[], int]) -> Port:
        """As `xenpy.ports.Ports.listen`; `service` is never called."""
        return self._channels.bind_unbound(domid)

    def bind(self, domid: DomId, remote_port: Port, service: Callable[[], int]) -> Port:
        """As `xenpy.ports.Ports.bind`; `service` is never called."""
        return self._channels.bind_interdomain(domid, remote_port)

    def notify(self, port: Port) -> None:
        """Notify the other end."""
        self._channels.notify(port)

    def close(self) -> None:
        """Unbind the port.  Nobody may be waiting."""
        self._channels.close()

    def wait(self, seen: int, timeout: float) -> None:
        """Return when an event has come since `fired` was `seen`, or sooner.

        A peer that notifies without end is heard 20 times a second, as in `xenpy.ports`.

        Args:
            timeout: seconds; `SLICE` at most.
        """
        timeout = min(timeout, SLICE)
        with self._turn:
            if self.fired != seen:
                return
            if self._somebody_waits:
                self._turn.wait(timeout)
                return
            self._somebody_waits = True
        ports: list[Port] = []
        try:
            ports = self._channels.wait(timeout)
            if ports:
                self.idle += 1
                if self.idle > SPURIOUS_ALLOWED:
                    time.sleep(hold_off(self.idle))
                self._channels.unmask(ports)
        finally:
            with self._turn:
                self._somebody_waits = False
                self.fired += len(ports)
                self._turn.notify_all()
