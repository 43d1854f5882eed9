# SPDX-License-Identifier: MIT
"""Event channels: one handle of /dev/xen/evtchn, its ports, one descriptor to poll.

Thin over libxenevtchn; synchronous.  A handle belongs to one thread: two that read its
descriptor would take each other's events (xenevtchn.h).

A port that has fired stays masked until it is unmasked.  The order that loses nothing:
`pending`, work until the ring's final check finds nothing, `unmask`.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Sequence
from typing import Final

from xenpy._ffi.stable import StableLib, ffi
from xenpy._ffi.stable import lib as native
from xenpy._ffi.types import CData
from xenpy.errors import XenError, xen_error
from xenpy.handles import Handle, open_error
from xenpy.types import DomId, Port

__all__ = ["VIRQ_DOM_EXC", "EventChannels"]

VIRQ_DOM_EXC: Final = 3
"""xen.h: a domain has died or changed its state.  For dom0."""
READ_LIMIT: Final = 1024
"""Ports in one read: /dev/xen/evtchn gives at most a page of them (drivers/xen/evtchn.c)."""


class EventChannels(Handle):
    """A set of ports.

    Args:
        lib: the C functions; `xenpy.testing` substitutes its own.

    Raises:
        XenNotFoundError: no /dev/xen/evtchn: not a Xen domain, or xen-evtchn is not loaded.
    """

    def __init__(self, lib: StableLib = native) -> None:
        self._lib = lib
        self._handle = lib.xenevtchn_open(lib.xenpy_quiet_logger(), 0)
        if self._handle == ffi.NULL:
            raise open_error(ffi.errno, "evtchn_open", "xen-evtchn")
        self._fd = lib.xenevtchn_fd(self._handle)
        self._poller = select.poll()
        self._poller.register(self._fd, select.POLLIN)
        self._buffer = ffi.new("uint32_t[]", READ_LIMIT)
        self._ports: set[Port] = set()
        super().__init__()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.held} ports"
        return f"<EventChannels {state}>"

    @property
    def held(self) -> int:
        """How many ports are bound."""
        return len(self._ports)

    @property
    def ports(self) -> frozenset[Port]:
        """The ports that are bound."""
        return frozenset(self._ports)

    def fileno(self) -> int:
        """The descriptor to poll for reading: readable when a port is pending.

        POLLERR: the kernel's ring overflowed (more events than it has room for, which a port
        that is bound once cannot do); `reset` clears it.
        """
        self._check("fileno")
        return self._fd

    def native(self) -> tuple[StableLib, CData]:
        """For users of `_ffi`: the C functions and the handle, valid until `close`."""
        self._check("native")
        return self._lib, self._handle

    def bind_unbound(self, domid: DomId) -> Port:
        """Allocate a port to which `domid` may bind.

        Raises:
            XenError: ENOSPC when this domain has no free port; else as Xen gave it.
        """
        self._check("bind_unbound")
        port = self._lib.xenevtchn_bind_unbound_port(self._handle, domid)
        return self._bound(port, "bind_unbound_port", domid=domid)

    def bind_interdomain(self, domid: DomId, remote_port: Port) -> Port:
        """Bind to a port that `domid` allocated for us.  Returns our own port.

        It is pending at once: Xen cannot know whether the other side has notified before.

        Raises:
            XenError: EINVAL when the remote port is no such port, or bound already.
        """
        self._check("bind_interdomain")
        port = self._lib.xenevtchn_bind_interdomain(self._handle, domid, remote_port)
        return self._bound(port, "bind_interdomain", domid=domid, remote_port=remote_port)

    def bind_virq(self, virq: int) -> Port:
        """Bind a virtual interrupt, such as `VIRQ_DOM_EXC`.

        Raises:
            XenError: EEXIST when the virq is bound already; EPERM in an unprivileged domain.
        """
        self._check("bind_virq")
        return self._bound(
            self._lib.xenevtchn_bind_virq(self._handle, virq), "bind_virq", virq=virq
        )

    def unbind(self, port: Port) -> None:
        """Close `port`; events that it had pending are dropped.

        Raises:
            XenError: ENOTCONN when the port is not ours; EINVAL when it is beyond what
                Linux has made room for.
        """
        self._check("unbind")
        if self._lib.xenevtchn_unbind(self._handle, port) < 0:
            raise xen_error(ffi.errno, "unbind", port=port)
        self._ports.discard(port)

    def notify(self, port: Port) -> None:
        """Notify the other end of `port`.  To an end that is closed it does nothing.

        Raises:
            XenError: ENOTCONN when the port is not ours.
        """
        self._check("notify")
        if self._lib.xenevtchn_notify(self._handle, port) < 0:
            raise xen_error(ffi.errno, "notify", port=port)

    def pending(self, limit: int = 64) -> list[Port]:
        """The ports that have fired, each masked now; [] at once when there is none.

        Args:
            limit: how many to take at most; the others stay pending.

        Raises:
            XenError: EFBIG when the kernel's ring has overflowed; call `reset`.
        """
        return self.wait(0.0, limit)

    def wait(self, timeout: float | None = None, limit: int = 64) -> list[Port]:
        """As `pending`, once there is one; [] if none has fired in time.

        Args:
            timeout: seconds; None: for ever.

        Raises:
            as `pending`.
        """
        self._check("pending")
        limit = min(limit, READ_LIMIT)
        # O_NONBLOCK "may not work on all platforms" (xenevtchn.h), so it is polled first.
        if limit < 1 or not self._poller.poll(None if timeout is None else timeout * 1000):
            return []
        count = self._lib.xenpy_evtchn_read(self._fd, self._buffer, limit)
        if count < 0:
            raise xen_error(ffi.errno, "pending")
        # A port that was unbound meanwhile may still be in the kernel's ring.
        taken = (Port(self._buffer[number]) for number in range(count))
        return [port for port in taken if port in self._ports]

    def unmask(self, ports: Sequence[Port]) -> None:
        """Let these ports fire again; one that became pending meanwhile fires at once.

        Raises:
            XenError: a port is not bound; nothing was unmasked.
        """
        self._check("unmask")
        strangers = [port for port in ports if port not in self._ports]
        if strangers:
            raise XenError(errno.ENOTCONN, "unmask", ports=strangers)
        if not ports:
            return
        for start in range(0, len(ports), READ_LIMIT):
            some = list(ports[start : start + READ_LIMIT])
            if self._lib.xenpy_evtchn_unmask(self._fd, ffi.new("uint32_t[]", some), len(some)) < 0:
                raise xen_error(ffi.errno, "unmask", ports=some)

    def restrict(self, domid: DomId) -> None:
        """From now on, and for good, this handle binds interdomain ports of `domid` only.

        Raises:
            XenError: EACCES when it is restricted already; EINVAL for domain 0.
        """
        self._check("restrict")
        if self._lib.xenevtchn_restrict(self._handle, domid) < 0:
            raise xen_error(ffi.errno, "restrict", domid=domid)

    def reset(self) -> None:
        """Empty the kernel's ring after an overflow.  Every port that had fired is lost in
        it, masked: look after the work of each and `unmask` it.

        Raises:
            XenError: as the kernel gave it.
        """
        self._check("reset")
        if self._lib.xenpy_evtchn_reset(self._fd) < 0:
            raise xen_error(ffi.errno, "reset")

    def _bound(self, port: int, operation: str, **arguments: int) -> Port:
        if port < 0:
            raise xen_error(ffi.errno, operation, "", **arguments)
        self._ports.add(Port(port))
        return Port(port)

    def _release(self) -> None:
        # The kernel unbinds every port of the handle.
        self._ports.clear()
        self._lib.xenevtchn_close(self._handle)

    def _abandon(self) -> None:
        self._lib.xenevtchn_close(self._handle)
