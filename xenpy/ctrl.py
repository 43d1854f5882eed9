# SPDX-License-Identifier: MIT
"""What the hypervisor tells its control domain: domains, version, memory, ports, console ring.

Over libxenctrl, which is optional: importing this module raises ImportError where it cannot
be loaded, and no driver imports it.  Only calls that Xen 4.17 and 4.20 both have.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from xenpy._ffi.types import CData
from xenpy._ffi.xenctrl import ffi
from xenpy._ffi.xenctrl import lib as native
from xenpy.errors import XenNotFoundError, xen_error
from xenpy.handles import Handle
from xenpy.types import DOM0, PORTS_LIMIT, DomId, Port

__all__ = ["Control", "DomainInfo", "PhysInfo", "PortInfo"]

LIST_CHUNK: Final = 256
CONSOLE_CHUNK: Final = 1 << 20
"""Bytes; Xen's default for the ring (`conring_size`) is 16 to 32 KiB."""
BOUND_TO: Final = {
    native.EVTCHNSTAT_unbound: "unbound",
    native.EVTCHNSTAT_interdomain: "interdomain",
    native.EVTCHNSTAT_pirq: "pirq",
    native.EVTCHNSTAT_virq: "virq",
    native.EVTCHNSTAT_ipi: "ipi",
}


@dataclass(frozen=True, slots=True)
class DomainInfo:
    """One domain, as xc_domain_getinfolist tells it.

    Attributes:
        domid: its number.
        uuid: 16 bytes.
        dying, shutdown, paused, blocked, running, hvm: its flags; `hvm` for PVH as well.
        shutdown_reason: SHUTDOWN_* of sched.h when `shutdown`, else 0.
        pages, max_pages: of 4 KiB: what it has, what it may have.
        cpu_time_ns: of all its vcpus.
        vcpus: that are online.
    """

    domid: DomId
    uuid: bytes
    dying: bool
    shutdown: bool
    paused: bool
    blocked: bool
    running: bool
    hvm: bool
    shutdown_reason: int
    pages: int
    max_pages: int
    cpu_time_ns: int
    vcpus: int


@dataclass(frozen=True, slots=True)
class PortInfo:
    """An event channel's end, as EVTCHNOP_status tells it.

    Attributes:
        domid, port: whose, and which.
        bound_to: "unbound", "interdomain", "pirq", "virq", "ipi".
        vcpu: that is notified.
        remote_domid: who may bind, or has bound; None unless unbound or interdomain.
        remote_port: the other end, None unless interdomain.
        irq: which, of a pirq or a virq; else None.
    """

    domid: DomId
    port: Port
    bound_to: str
    vcpu: int
    remote_domid: DomId | None
    remote_port: Port | None
    irq: int | None


@dataclass(frozen=True, slots=True)
class PhysInfo:
    """The machine, as xc_physinfo tells it.  Pages of 4 KiB."""

    cpus: int
    nodes: int
    threads_per_core: int
    cores_per_socket: int
    cpu_khz: int
    total_pages: int
    free_pages: int
    scrub_pages: int


class Control(Handle):
    """A connection to the hypervisor.

    Raises:
        XenError: no /dev/xen/privcmd: not a control domain.
    """

    def __init__(self) -> None:
        self._handle: CData = native.xc_interface_open(
            native.xenpy_quiet_logger(), native.xenpy_quiet_logger(), 0
        )
        if self._handle == ffi.NULL:
            raise xen_error(ffi.errno, "xc_interface_open", "is this dom0?")
        super().__init__()

    def __repr__(self) -> str:
        return f"<Control {'closed' if self.closed else 'open'}>"

    def domains(self, first: DomId = DOM0) -> list[DomainInfo]:
        """Every domain from `first` on, in the order of domids.

        Raises:
            XenError: as Xen gave it; EACCES when library and hypervisor are of different
                releases.
        """
        self._check("domains")
        found: list[DomainInfo] = []
        chunk = ffi.new("xc_domaininfo_t[]", LIST_CHUNK)
        while True:
            count = native.xc_domain_getinfolist(self._handle, first, LIST_CHUNK, chunk)
            if count < 0:
                raise xen_error(ffi.errno, "xc_domain_getinfolist", first=first)
            found += [_domain(chunk[number]) for number in range(count)]
            if count < LIST_CHUNK:
                return found
            first = DomId(found[-1].domid + 1)

    def domain(self, domid: DomId) -> DomainInfo:
        """One domain.

        Raises:
            XenNotFoundError: there is none.
        """
        self._check("domain")
        info = ffi.new("xc_domaininfo_t[]", 1)
        count = native.xc_domain_getinfolist(self._handle, domid, 1, info)
        if count < 0:
            raise xen_error(ffi.errno, "xc_domain_getinfolist", domid=domid)
        # It answers with the next domain when there is none of this number.
        if count == 0 or info[0].domain != domid:
            raise XenNotFoundError(errno.ENOENT, "xc_domain_getinfolist", domid=domid)
        return _domain(info[0])

    def version(self) -> str:
        """The version of the hypervisor that runs, such as "4.20.2"."""
        self._check("version")
        number = native.xc_version(self._handle, native.XENVER_version, ffi.NULL)
        extra = ffi.new("char[16]")
        if number < 0 or native.xc_version(self._handle, native.XENVER_extraversion, extra) < 0:
            raise xen_error(ffi.errno, "xc_version")
        return f"{number >> 16}.{number & 0xFFFF}{ffi.string(extra, 16).decode('ascii', 'replace')}"

    def physinfo(self) -> PhysInfo:
        """The machine.

        Raises:
            XenError: as Xen gave it.
        """
        self._check("physinfo")
        info = ffi.new("xc_physinfo_t *")
        if native.xc_physinfo(self._handle, info) < 0:
            raise xen_error(ffi.errno, "xc_physinfo")
        return PhysInfo(
            info.nr_cpus, info.nr_nodes, info.threads_per_core, info.cores_per_socket,
            info.cpu_khz, info.total_pages, info.free_pages, info.scrub_pages,
        )  # fmt: skip

    def event_channels(self, domid: DomId) -> list[PortInfo]:
        """The ports of a domain that are bound to anything, in their order.

        Raises:
            XenError: ESRCH, there is no such domain; as Xen gave it.
        """
        self._check("event_channels")
        status = ffi.new("xc_evtchn_status_t *")
        found: list[PortInfo] = []
        for port in range(1, PORTS_LIMIT):
            status.dom, status.port = domid, port
            if native.xc_evtchn_status(self._handle, status) < 0:
                if ffi.errno != errno.EINVAL:
                    raise xen_error(ffi.errno, "xc_evtchn_status", domid=domid, port=port)
                # Xen has made room for no more.
                break
            if status.status != native.EVTCHNSTAT_closed:
                found.append(_port(status))
        return found

    def debug_keys(self, keys: str) -> None:
        """Have the hypervisor do what these keys mean on its console, as `xl debug-keys` does.

        Raises:
            XenError: as Xen gave it.
        """
        self._check("debug_keys")
        if native.xc_send_debug_keys(self._handle, keys.encode("ascii")) < 0:
            raise xen_error(ffi.errno, "xc_send_debug_keys", keys=keys)

    def console_ring(self, *, clear: bool = False) -> str:
        """The hypervisor's messages, as `xl dmesg` shows them.

        Args:
            clear: empty the ring afterwards, for everybody.
        """
        self._check("console_ring")
        buffer = ffi.new("char[]", CONSOLE_CHUNK)
        length, index = ffi.new("unsigned int *"), ffi.new("uint32_t *")
        content = b""
        while True:
            length[0] = CONSOLE_CHUNK
            if native.xc_readconsolering(self._handle, buffer, length, clear, 1, index) < 0:
                raise xen_error(ffi.errno, "xc_readconsolering")
            content += bytes(ffi.buffer(buffer, length[0]))
            if length[0] < CONSOLE_CHUNK:
                return content.decode("utf-8", "replace")

    def _release(self) -> None:
        native.xc_interface_close(self._handle)

    def _abandon(self) -> None:
        native.xc_interface_close(self._handle)


def _port(status: CData) -> PortInfo:
    bound_to = BOUND_TO.get(status.status, f"status {status.status}")
    domid = port = irq = None
    if bound_to == "unbound":
        domid = DomId(status.u.unbound.dom)
    elif bound_to == "interdomain":
        domid, port = DomId(status.u.interdomain.dom), Port(status.u.interdomain.port)
    elif bound_to in ("pirq", "virq"):
        irq = int(status.u.virq)
    return PortInfo(
        DomId(status.dom), Port(status.port), bound_to, status.vcpu, domid, port, irq
    )  # fmt: skip


def _domain(info: CData) -> DomainInfo:
    def flag(mask: int) -> bool:
        return bool(info.flags & mask)

    shutdown = flag(native.XEN_DOMINF_shutdown)
    reason = info.flags >> native.XEN_DOMINF_shutdownshift & native.XEN_DOMINF_shutdownmask
    return DomainInfo(
        domid=DomId(info.domain),
        uuid=bytes(ffi.buffer(info.handle)),
        dying=flag(native.XEN_DOMINF_dying),
        shutdown=shutdown,
        paused=flag(native.XEN_DOMINF_paused),
        blocked=flag(native.XEN_DOMINF_blocked),
        running=flag(native.XEN_DOMINF_running),
        hvm=flag(native.XEN_DOMINF_hvm_guest),
        shutdown_reason=reason if shutdown else 0,
        pages=info.tot_pages,
        max_pages=info.max_pages,
        cpu_time_ns=info.cpu_time,
        vcpus=info.nr_online_vcpus,
    )
