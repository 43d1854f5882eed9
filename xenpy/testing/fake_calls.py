# SPDX-License-Identifier: MIT
"""`struct xenpy_calls` over a fake Xen: what a native engine calls comes back into Python."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Final, Protocol

from xenpy._ffi.stable import ffi
from xenpy._ffi.types import CData

__all__ = ["FakeCalls", "fill_calls"]


class FakeCalls(Protocol):
    """The functions of a fake `StableLib` that an engine needs."""

    def xengnttab_map_domain_grant_refs(
        self, xgt: CData, count: int, domid: int, refs: CData, prot: int
    ) -> CData: ...
    def xengnttab_unmap(self, xgt: CData, start_address: CData, count: int) -> int: ...
    def xengnttab_grant_copy(self, xgt: CData, count: int, segs: CData) -> int: ...
    def xenevtchn_fd(self, xce: CData) -> int: ...
    def xenevtchn_notify(self, xce: CData, port: int) -> int: ...
    def xenpy_evtchn_read(self, fd: int, ports: CData, limit: int) -> int: ...
    def xenpy_evtchn_unmask(self, fd: int, ports: CData, count: int) -> int: ...


SIGNATURES: Final = {
    "map": "void *(void *, uint32_t, uint32_t, uint32_t *, int)",
    "unmap": "int(void *, void *, uint32_t)",
    "copy": "int(void *, uint32_t, xengnttab_grant_copy_segment_t *)",
    "notify": "int(void *, uint32_t)",
    "pending": "int(void *, uint32_t *, uint32_t)",
    "unmask": "int(void *, const uint32_t *, uint32_t)",
}
_alive: weakref.WeakKeyDictionary[CData, list[CData]] = weakref.WeakKeyDictionary()
"""The callbacks of each table."""


def fill_calls(fake: FakeCalls, calls: CData, grants: CData, events: CData) -> None:
    """Fill a table that is good for as long as `calls` lives."""
    fd = fake.xenevtchn_fd(events)

    def map_(_: CData, count: int, domid: int, refs: CData, prot: int) -> CData:
        return fake.xengnttab_map_domain_grant_refs(grants, count, domid, refs, prot)

    def unmap(_: CData, address: CData, count: int) -> int:
        return fake.xengnttab_unmap(grants, address, count)

    def copy(_: CData, count: int, segments: CData) -> int:
        return fake.xengnttab_grant_copy(grants, count, segments)

    def notify(_: CData, port: int) -> int:
        return fake.xenevtchn_notify(events, port)

    def pending(_: CData, ports: CData, limit: int) -> int:
        return fake.xenpy_evtchn_read(fd, ports, limit)

    def unmask(_: CData, ports: CData, count: int) -> int:
        return fake.xenpy_evtchn_unmask(fd, ports, count)

    functions: dict[str, Callable[..., object]] = {
        "map": map_, "unmap": unmap, "copy": copy,
        "notify": notify, "pending": pending, "unmask": unmask,
    }  # fmt: skip
    calls.events_fd = fd
    _alive[calls] = []
    for name, function in functions.items():
        error = ffi.NULL if name == "map" else -1
        callback = ffi.callback(SIGNATURES[name], function, error)
        _alive[calls].append(callback)
        setattr(calls, name, callback)
