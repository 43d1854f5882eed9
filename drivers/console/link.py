# SPDX-License-Identifier: MIT
"""One connection to a console's page: ring and port, served in the event loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from xenpy.backend import XenAccess, open_restricted
from xenpy.drivers.console.hub import Hub
from xenpy.drivers.console.protocol import ConsoleRing
from xenpy.ports import Ports
from xenpy.types import DomId, GrantRef, Port

__all__ = ["Link"]


class Link:
    """A backend's hold on a console; `close` lets go of it.

    Args:
        hub: gets what is printed, and has what is typed.
        xen, domid, ref, remote_port: where the guest's page and port are.
        fail: called with what makes the ring useless; nothing is read of it after that.

    Attributes:
        wakes: events that were served.

    Raises:
        XenError: there is no such page or port; nothing is held.
    """

    def __init__(
        self,
        hub: Hub,
        xen: XenAccess,
        domid: DomId,
        ref: GrantRef,
        remote_port: Port,
        fail: Callable[[Exception], None],
    ) -> None:
        self._hub = hub
        self._fail = fail
        self._over = False
        with ExitStack() as held:
            grants = held.enter_context(xen.open_grants())
            page = grants.map(domid, [ref])
            held.callback(page.close)
            self._ports = Ports(open_restricted(xen, domid))
            held.callback(self._ports.close)
            self._ring = ConsoleRing.backend(page)
            self._port = self._ports.bind(domid, remote_port, self._service)
            self._held = held.pop_all()
        hub.connected(self._send)
        # Output from before the port was bound, which nobody will notify us of.
        self._service()

    @property
    def wakes(self) -> int:
        return self._ports.wakes

    def _service(self) -> int:
        """A bounded turn: at most a ring of output and one of input."""
        if self._over:
            return 0
        try:
            printed = self._ring.taken.read()
            if printed:
                # Before anybody else gets to see it: a guest may wait for the room.
                self._ports.notify(self._port)
                self._hub.print(printed)
            return len(printed) + self._send()
        except Exception as error:
            self._broken(error)
            return 0

    def _send(self) -> int:
        if self._over:
            return 0
        try:
            count = self._hub.take(self._ring.put.write)
        except Exception as error:
            self._broken(error)
            return 0
        if count:
            self._ports.notify(self._port)
        return count

    def _broken(self, error: Exception) -> None:
        self._over = True
        self._fail(error)

    def close(self) -> None:
        """Read what is left in the ring, unbind, unmap.  Harmless when closed."""
        if not self._over:
            self._service()
        self._over = True
        self._hub.disconnected()
        self._held.close()
