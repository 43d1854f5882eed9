# SPDX-License-Identifier: MIT
"""Event channels in an event loop: a port fires, its callback runs.

For a frontend, whose work in a wake-up is bounded by what it has asked itself, and for a
backend that is called for each request (`xenpy.ring_backend`).  A backend that is to be fast
serves each ring in a thread of its own (`xenpy.runtime`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from xenpy.evtchn import EventChannels
from xenpy.runtime import SPURIOUS_ALLOWED, hold_off
from xenpy.types import DomId, Port

__all__ = ["Ports"]


@dataclass(slots=True)
class _Bound:
    """A port.

    Attributes:
        service: what to call.
        idle_wakes: how often it fired for nothing since it last fired for something.
        held: unmasks it later.
    """

    service: Callable[[], int]
    idle_wakes: int = 0
    held: asyncio.TimerHandle | None = None


class Ports:
    """The ports of one handle, dispatched in the event loop that runs now.

    A peer that notifies without end is heard 20 times a second (XSA-391): a port that fired
    for nothing several times stays masked for a while.

    Args:
        channels: the handle; `close` closes it.
    """

    def __init__(self, channels: EventChannels) -> None:
        self._channels = channels
        self._loop = asyncio.get_running_loop()
        self._bound: dict[Port, _Bound] = {}
        self._fd = channels.fileno()
        self._loop.add_reader(self._fd, self._fired)
        self.wakes = 0

    def __repr__(self) -> str:
        return f"<Ports of {self._channels!r}, {self.wakes} wakes>"

    def listen(self, domid: DomId, service: Callable[[], int]) -> Port:
        """Allocate a port to which `domid` may bind.

        Args:
            service: called when the port has fired.  It returns how much it found to do: 0
                only after the ring's final check found nothing.  It must not raise.

        Raises:
            XenError: as `EventChannels.bind_unbound`.
        """
        port = self._channels.bind_unbound(domid)
        self._bound[port] = _Bound(service)
        return port

    def bind(self, domid: DomId, remote_port: Port, service: Callable[[], int]) -> Port:
        """Bind to a port that `domid` has allocated for us; `service` is as for `listen`.

        Raises:
            XenError: as `EventChannels.bind_interdomain`.
        """
        port = self._channels.bind_interdomain(domid, remote_port)
        self._bound[port] = _Bound(service)
        return port

    def notify(self, port: Port) -> None:
        """Notify the other end."""
        self._channels.notify(port)

    def close(self) -> None:
        """Unbind every port; no callback runs any more.  Harmless when closed."""
        for bound in self._bound.values():
            if bound.held is not None:
                bound.held.cancel()
        self._bound.clear()
        if not self._channels.closed:
            self._loop.remove_reader(self._fd)
            self._channels.close()

    def _fired(self) -> None:
        for port in self._channels.pending():
            self._serve(port)

    def _serve(self, port: Port) -> None:
        bound = self._bound.get(port)
        if bound is None:
            # Closed by the callback of a port before it.
            return
        self.wakes += 1
        bound.idle_wakes = 0 if bound.service() else bound.idle_wakes + 1
        if port not in self._bound:
            return
        if bound.idle_wakes <= SPURIOUS_ALLOWED:
            self._channels.unmask([port])
            return
        bound.held = self._loop.call_later(hold_off(bound.idle_wakes), self._unmask, port)

    def _unmask(self, port: Port) -> None:
        self._bound[port].held = None
        self._channels.unmask([port])
