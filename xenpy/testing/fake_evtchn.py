# SPDX-License-Identifier: MIT
"""Event channels of a fake Xen: the hypervisor's table and Linux's /dev/xen/evtchn.

Follows xen/common/event_channel.c and drivers/xen/evtchn.c where a driver can see it: a
bound port is pending at once, a port that fired is masked until it is unmasked, an event
for a masked port is kept, a closed port leaves its peer unbound and free to be bound again.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from dataclasses import dataclass

from xenpy.types import DOMID_FIRST_RESERVED, DOMID_SELF, PORTS_LIMIT

__all__ = ["ChannelTable", "EvtchnDevice"]

NR_VIRQS = 24
"""xen.h."""


@dataclass(eq=False)
class _Port:
    """One end.

    Attributes:
        remote_domid: who is, or may be, at the other end.
        peer: the other end, or None while unbound (or for a virq).
        masked, pending: as in Xen's shared page.
    """

    domid: int
    number: int
    device: EvtchnDevice
    remote_domid: int = -1
    peer: _Port | None = None
    virq: int | None = None
    masked: bool = False
    pending: bool = False


class ChannelTable:
    """All ports of all domains.  Thread-safe.

    Args:
        domains: those that exist.
    """

    def __init__(self, domains: set[int]) -> None:
        self._domains = domains
        self._lock = threading.RLock()
        self._ports: dict[tuple[int, int], _Port] = {}

    def open_ports(self, domid: int | None = None) -> int:
        """How many ports are allocated, by one domain or by all."""
        with self._lock:
            return sum(1 for owner, _ in self._ports if domid in (None, owner))

    def bind_unbound(self, device: EvtchnDevice, remote_domid: int) -> int:
        with self._lock:
            port = self._allocate(device)
            port.remote_domid = _resolved(device, remote_domid)
            return port.number

    def bind_interdomain(self, device: EvtchnDevice, remote_domid: int, remote_port: int) -> int:
        remote_domid = _resolved(device, remote_domid)
        with self._lock:
            if remote_domid not in self._domains:
                raise OSError(errno.ESRCH, "no such domain")
            peer = self._ports.get((remote_domid, remote_port))
            if (
                peer is None
                or peer.virq is not None
                or peer.peer is not None
                or peer.remote_domid != device.domid
            ):
                raise OSError(errno.EINVAL, "no such unbound port")
            port = self._allocate(device)
            port.remote_domid, port.peer, peer.peer = remote_domid, peer, port
            self._fire(port)
            return port.number

    def bind_virq(self, device: EvtchnDevice, virq: int) -> int:
        with self._lock:
            if virq >= NR_VIRQS:
                raise OSError(errno.EINVAL, "no such virq")
            if any(p.virq == virq and p.domid == device.domid for p in self._ports.values()):
                raise OSError(errno.EEXIST, "this virq is bound")
            port = self._allocate(device)
            port.virq = virq
            return port.number

    def raise_virq(self, domid: int, virq: int) -> None:
        """What Xen does when something happened."""
        with self._lock:
            for port in self._ports.values():
                if port.domid == domid and port.virq == virq:
                    self._fire(port)

    def is_bound(self, domid: int, number: int) -> bool:
        """Is it a port of that domain?"""
        with self._lock:
            return (domid, number) in self._ports

    def send(self, domid: int, number: int) -> None:
        """EVTCHNOP_send."""
        with self._lock:
            port = self._ports.get((domid, number))
            if port is not None and port.peer is not None:
                self._fire(port.peer)

    def close(self, device: EvtchnDevice, number: int) -> None:
        with self._lock:
            port = self._owned(device, number)
            del self._ports[port.domid, number]
            if port.peer is not None:
                port.peer.peer = None

    def notify(self, device: EvtchnDevice, number: int) -> None:
        with self._lock:
            peer = self._owned(device, number).peer
            if peer is not None:
                self._fire(peer)

    def unmask(self, device: EvtchnDevice, number: int) -> None:
        with self._lock:
            port = self._owned(device, number)
            port.masked = False
            if port.pending:
                port.pending = False
                self._fire(port)

    def ports_of(self, device: EvtchnDevice) -> list[int]:
        with self._lock:
            return [port.number for port in self._ports.values() if port.device is device]

    def _allocate(self, device: EvtchnDevice) -> _Port:
        # Port 0 is never a port.
        number = next(n for n in range(1, PORTS_LIMIT) if (device.domid, n) not in self._ports)
        port = self._ports[device.domid, number] = _Port(device.domid, number, device)
        return port

    def _owned(self, device: EvtchnDevice, number: int) -> _Port:
        port = self._ports.get((device.domid, number))
        if port is None or port.device is not device:
            raise OSError(errno.ENOTCONN, "not a port of this handle")
        return port

    def _fire(self, port: _Port) -> None:
        if port.masked:
            port.pending = True
        else:
            port.masked = True
            port.device.deliver(port.number)


def _resolved(device: EvtchnDevice, domid: int) -> int:
    return device.domid if domid == DOMID_SELF else domid


class EvtchnDevice:
    """An open /dev/xen/evtchn.  OSError carries the errno that the ioctl would give."""

    def __init__(self, table: ChannelTable, domid: int) -> None:
        self.domid = domid
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._table = table
        self._fired: deque[int] = deque()
        self._lock = threading.Lock()
        self._restricted_to: int | None = None

    def bind_unbound(self, domid: int) -> int:
        self._refuse_if_restricted()
        return self._table.bind_unbound(self, domid)

    def bind_interdomain(self, domid: int, remote_port: int) -> int:
        if self._restricted_to not in (None, domid):
            raise OSError(errno.EACCES, "restricted to another domain")
        return self._table.bind_interdomain(self, domid, remote_port)

    def bind_virq(self, virq: int) -> int:
        self._refuse_if_restricted()
        return self._table.bind_virq(self, virq)

    def restrict(self, domid: int) -> None:
        self._refuse_if_restricted()
        if domid == 0 or domid >= DOMID_FIRST_RESERVED:
            # evtchn_ioctl, IOCTL_EVTCHN_RESTRICT_DOMID: neither is a domain to restrict to.
            raise OSError(errno.EINVAL, "no guest")
        self._restricted_to = domid

    def unbind(self, port: int) -> None:
        self._table.close(self, port)

    def notify(self, port: int) -> None:
        self._table.notify(self, port)

    def unmask(self, ports: list[int]) -> None:
        for port in ports:
            self._table.unmask(self, port)

    def deliver(self, port: int) -> None:
        with self._lock:
            self._fired.append(port)
            if len(self._fired) == 1:
                os.eventfd_write(self.fd, 1)

    def read(self, limit: int) -> list[int]:
        with self._lock:
            taken = [self._fired.popleft() for _ in range(min(limit, len(self._fired)))]
            if taken and not self._fired:
                os.eventfd_read(self.fd)
            return taken

    def reset(self) -> None:
        with self._lock:
            if self._fired:
                os.eventfd_read(self.fd)
            self._fired.clear()

    def close(self) -> None:
        for port in self._table.ports_of(self):
            self._table.close(self, port)
        os.close(self.fd)

    def _refuse_if_restricted(self) -> None:
        if self._restricted_to is not None:
            raise OSError(errno.EACCES, "the handle is restricted")
