# SPDX-License-Identifier: MIT
"""The port of a channel outside an event loop."""

from __future__ import annotations

from collections.abc import Callable

from xenpy.evtchn import EventChannels
from xenpy.types import DomId, Port

__all__ = ["ThreadPorts"]


class ThreadPorts:
    """A handle with one port.

    Args:
        channels: the handle; `close` closes it.
    """

    def __init__(self, channels: EventChannels) -> None:
        self.channels = channels

    def listen(self, domid: DomId, service: Callable[[], int]) -> Port:
        """As `xenpy.ports.Ports.listen`; `service` is never called."""
        return self.channels.bind_unbound(domid)

    def bind(self, domid: DomId, remote_port: Port, service: Callable[[], int]) -> Port:
        """As `xenpy.ports.Ports.bind`; `service` is never called."""
        return self.channels.bind_interdomain(domid, remote_port)

    def notify(self, port: Port) -> None:
        """Notify the other end."""
        self.channels.notify(port)

    def wait(self, timeout: float | None) -> None:
        """Return when the port has fired, or after `timeout` seconds; None: not before."""
        self.channels.unmask(self.channels.wait(timeout))

    def close(self) -> None:
        """Unbind the port.  Nobody may be waiting."""
        self.channels.close()
