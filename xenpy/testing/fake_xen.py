# SPDX-License-Identifier: MIT
"""A Xen in this process: domains that grant, map, copy and notify.

    xen = FakeXen()
    guest, dom0 = xen.domain(1), xen.domain(0)
    pages = guest.open_share().share(DomId(0), 1)
    mapping = dom0.open_grants().map(DomId(1), pages.refs)

It stands in for the C libraries, below `xenpy.gnttab` and `xenpy.evtchn`, so that a driver
under test runs the very code that it runs on Xen, down to the last call.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Final, cast

from xenpy._ffi.stable import StableLib, ffi, lib
from xenpy._ffi.types import CData
from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantShare, GrantTable
from xenpy.testing.fake_calls import fill_calls
from xenpy.testing.fake_evtchn import ChannelTable, EvtchnDevice
from xenpy.testing.fake_grants import GrantTables, Mapped
from xenpy.testing.fake_pages import MachinePages
from xenpy.types import DomId

__all__ = ["FakeDomain", "FakeLib", "FakeXen"]

NONE: Final = 0xFFFFFFFF
PROT_WRITE: Final = 2


class FakeXen:
    """The hypervisor.

    Attributes:
        grants, channels: what it knows; tests look into them.
    """

    def __init__(self) -> None:
        self.pages = MachinePages()
        self._domains: set[int] = set()
        self.grants = GrantTables(self.pages, self._domains)
        self.channels = ChannelTable(self._domains)

    def domain(self, domid: int) -> FakeDomain:
        """A domain; it exists as soon as it is asked for."""
        self._domains.add(domid)
        return FakeDomain(self, DomId(domid))

    def census(self) -> Mapping[str, int]:
        """What is held, counted: equal before and after, or something leaks."""
        return {
            "grants": self.grants.granted(),
            "mapped grants": self.grants.mapped(),
            "ports": self.channels.open_ports(),
        }

    def close(self) -> None:
        """Give the memory back."""
        self.pages.close()


class FakeDomain:
    """A domain as its own user space sees it; an `xenpy.backend.XenAccess`."""

    def __init__(self, xen: FakeXen, domid: DomId) -> None:
        self.domid = domid
        # A cast: what FakeLib does not define comes from the real library by __getattr__.
        self.lib = cast(StableLib, FakeLib(xen, domid))

    def open_grants(self) -> GrantTable:
        """A /dev/xen/gntdev."""
        return GrantTable(self.lib)

    def open_share(self) -> GrantShare:
        """A /dev/xen/gntalloc."""
        return GrantShare(self.lib)

    def open_evtchn(self) -> EventChannels:
        """A /dev/xen/evtchn."""
        return EventChannels(self.lib)


class _PageDevice:
    """An open gntdev or gntalloc: what it has mapped, by address."""

    def __init__(self) -> None:
        self.mapped: dict[int, Mapped] = {}
        self._pid = os.getpid()

    def release(self) -> list[Mapped]:
        """What goes with a close: nothing when a child of fork closes what it inherited."""
        return list(self.mapped.values()) if os.getpid() == self._pid else []


class FakeLib:
    """`xenpy._ffi.stable.StableLib` for one domain of a `FakeXen`.

    Functions that touch nothing but our own memory (rings, segments) are the real ones.
    """

    def __init__(self, xen: FakeXen, domid: DomId) -> None:
        self._xen = xen
        self._domid = domid
        self._devices: dict[int, EvtchnDevice] = {}

    def __getattr__(self, name: str) -> CData:
        return getattr(lib, name)

    # libxengnttab

    def xengnttab_open(self, logger: CData, open_flags: int) -> CData:
        return _PageDevice()

    def xengnttab_close(self, xgt: CData) -> int:
        for mapped in xgt.release():
            self._xen.grants.unmap(mapped)
        return 0

    def xengnttab_map_grant_refs(
        self, xgt: CData, count: int, domids: CData, refs: CData, prot: int
    ) -> CData:
        pages = [(domids[n], refs[n]) for n in range(count)]
        return self._map(xgt, pages, prot)

    def xengnttab_map_domain_grant_refs(
        self, xgt: CData, count: int, domid: int, refs: CData, prot: int
    ) -> CData:
        return self._map(xgt, [(domid, refs[n]) for n in range(count)], prot)

    def xengnttab_map_grant_ref_notify(
        self, xgt: CData, domid: int, ref: int, prot: int, notify_offset: int, notify_port: int
    ) -> CData:
        return self._map(xgt, [(domid, ref)], prot, (notify_offset, notify_port))

    def xengnttab_unmap(self, xgt: CData, start_address: CData, count: int) -> int:
        return _status(lambda: self._xen.grants.unmap(_take(xgt, start_address, count)))

    def xengnttab_grant_copy(self, xgt: CData, count: int, segs: CData) -> int:
        for number in range(count):
            segment = segs[number]
            if segment.flags == lib.GNTCOPY_source_gref:
                foreign = segment.source.foreign
                page = foreign.domid, foreign.ref
                found = self._xen.grants.read(self._domid, page, foreign.offset, segment.len)
                if isinstance(found, bytes):
                    ffi.memmove(segment.dest.virt, found, segment.len)
                    found = 0
                segment.status = found
            else:
                foreign = segment.dest.foreign
                page = foreign.domid, foreign.ref
                content = bytes(ffi.buffer(segment.source.virt, segment.len))
                segment.status = self._xen.grants.write(self._domid, page, foreign.offset, content)
        return 0

    def xengntshr_open(self, logger: CData, open_flags: int) -> CData:
        return _PageDevice()

    def xengntshr_close(self, xgs: CData) -> int:
        for mapped in xgs.release():
            self._xen.grants.unshare(mapped)
        return 0

    def xengntshr_share_pages(
        self, xgs: CData, domid: int, count: int, refs: CData, writable: int
    ) -> CData:
        return self._share(xgs, domid, count, refs, writable)

    def xengntshr_share_page_notify(
        self,
        xgs: CData,
        domid: int,
        ref: CData,
        writable: int,
        notify_offset: int,
        notify_port: int,
    ) -> CData:
        return self._share(xgs, domid, 1, ref, writable, (notify_offset, notify_port))

    def xengntshr_unshare(self, xgs: CData, start_address: CData, count: int) -> int:
        return _status(lambda: self._xen.grants.unshare(_take(xgs, start_address, count)))

    # libxenevtchn

    def xenevtchn_open(self, logger: CData, flags: int) -> CData:
        device = EvtchnDevice(self._xen.channels, self._domid)
        self._devices[device.fd] = device
        return device

    def xenevtchn_close(self, xce: CData) -> int:
        del self._devices[xce.fd]
        xce.close()
        return 0

    def xenevtchn_fd(self, xce: CData) -> int:
        return int(xce.fd)

    def xenevtchn_notify(self, xce: CData, port: int) -> int:
        return _status(lambda: xce.notify(port))

    def xenevtchn_bind_unbound_port(self, xce: CData, domid: int) -> int:
        return _number(lambda: xce.bind_unbound(domid))

    def xenevtchn_bind_interdomain(self, xce: CData, domid: int, remote_port: int) -> int:
        return _number(lambda: xce.bind_interdomain(domid, remote_port))

    def xenevtchn_bind_virq(self, xce: CData, virq: int) -> int:
        return _number(lambda: xce.bind_virq(virq))

    def xenevtchn_unbind(self, xce: CData, port: int) -> int:
        return _status(lambda: xce.unbind(port))

    def xenevtchn_restrict(self, xce: CData, domid: int) -> int:
        return _status(lambda: xce.restrict(domid))

    # calls.h

    def xenpy_calls_init(self, calls: CData, grants: CData, events: CData) -> None:
        fill_calls(self, calls, grants, events)

    # shim.c

    def xenpy_evtchn_read(self, fd: int, ports: CData, limit: int) -> int:
        taken = self._devices[fd].read(limit)
        ports[0 : len(taken)] = taken
        return len(taken)

    def xenpy_evtchn_unmask(self, fd: int, ports: CData, count: int) -> int:
        return _status(lambda: self._devices[fd].unmask([ports[n] for n in range(count)]))

    def xenpy_evtchn_reset(self, fd: int) -> int:
        return _status(self._devices[fd].reset)

    # ours

    def _map(
        self,
        device: _PageDevice,
        pages: list[tuple[int, int]],
        prot: int,
        notify: tuple[int, int] | None = None,
    ) -> CData:
        writable = bool(prot & PROT_WRITE)
        try:
            self._check_notify(notify, writable=writable)
            mapped = self._xen.grants.map(self._domid, pages, writable=writable)
        except OSError as error:
            ffi.errno = error.errno or errno.EIO
            return ffi.NULL
        return self._keep(device, mapped, notify)

    def _share(
        self,
        device: _PageDevice,
        domid: int,
        count: int,
        refs: CData,
        writable: int,
        notify: tuple[int, int] | None = None,
    ) -> CData:
        try:
            self._check_notify(notify, writable=True)
            mapped = self._xen.grants.share(self._domid, domid, count, writable=bool(writable))
        except OSError as error:
            ffi.errno = error.errno or errno.EIO
            return ffi.NULL
        for number, entry in enumerate(mapped.entries):
            refs[number] = entry.ref
        return self._keep(device, mapped, notify)

    def _check_notify(self, notify: tuple[int, int] | None, *, writable: bool) -> None:
        offset, port = notify or (NONE, NONE)
        if offset != NONE and not writable:
            raise OSError(errno.EINVAL, "a byte of a read-only mapping")
        if port != NONE and not self._xen.channels.is_bound(self._domid, port):
            raise OSError(errno.EINVAL, "no such port")

    def _keep(self, device: _PageDevice, mapped: Mapped, notify: tuple[int, int] | None) -> CData:
        device.mapped[mapped.address] = mapped
        if notify is not None:
            offset, port = notify

            def on_unmap() -> None:
                if offset != NONE:
                    self._xen.grants.clear_byte(mapped, offset)
                if port != NONE:
                    self._xen.channels.send(self._domid, port)

            mapped.on_unmap = on_unmap
        return ffi.cast("void *", mapped.address)


def _take(device: _PageDevice, address: CData, count: int) -> Mapped:
    mapped = device.mapped.pop(int(ffi.cast("uintptr_t", address)), None)
    if mapped is None or len(mapped.entries) != count:
        raise OSError(errno.EINVAL, "no such mapping")
    return mapped


def _number(call: Callable[[], int]) -> int:
    try:
        return call()
    except OSError as error:
        ffi.errno = error.errno or errno.EIO
        return -1


def _status(call: Callable[[], None]) -> int:
    try:
        call()
    except OSError as error:
        ffi.errno = error.errno or errno.EIO
        return -1
    return 0
