# SPDX-License-Identifier: MIT
"""`ffi` and `lib` of libxenctrl, typed; the only module that needs it.

Its soname changes with every Xen release (libxenctrl.so.4.17, .4.20), so it is an extension
of its own, and drivers do without it.
"""

from __future__ import annotations

from typing import Protocol, cast

from xenpy._ffi.types import CData, Ffi

__all__ = ["XenctrlLib", "ffi", "lib"]

try:
    from xenpy._ffi import _xenctrl  # type: ignore[attr-defined,unused-ignore]
except ImportError as _error:
    raise ImportError(
        f"xenpy's libxenctrl part cannot be loaded: {_error}.  libxenctrl changes its name with "
        "every Xen release: install this release's libxen-dev and run `python3 -m xenpy._ffi.build`"
    ) from _error


class XenctrlLib(Protocol):
    """The C functions, by the names they have in xenctrl.h."""

    XEN_DOMINF_dying: int
    XEN_DOMINF_hvm_guest: int
    XEN_DOMINF_shutdown: int
    XEN_DOMINF_paused: int
    XEN_DOMINF_blocked: int
    XEN_DOMINF_running: int
    XEN_DOMINF_shutdownmask: int
    XEN_DOMINF_shutdownshift: int
    XENVER_version: int
    XENVER_extraversion: int
    EVTCHNSTAT_closed: int
    EVTCHNSTAT_unbound: int
    EVTCHNSTAT_interdomain: int
    EVTCHNSTAT_pirq: int
    EVTCHNSTAT_virq: int
    EVTCHNSTAT_ipi: int

    def xc_interface_open(self, logger: CData, dombuild: CData, open_flags: int) -> CData: ...
    def xc_interface_close(self, xch: CData) -> int: ...
    def xc_domain_getinfolist(
        self, xch: CData, first_domain: int, max_domains: int, info: CData
    ) -> int: ...
    def xc_physinfo(self, xch: CData, info: CData) -> int: ...
    def xc_version(self, xch: CData, cmd: int, arg: CData) -> int: ...
    def xc_send_debug_keys(self, xch: CData, keys: bytes) -> int: ...
    def xc_evtchn_status(self, xch: CData, status: CData) -> int: ...
    def xc_readconsolering(
        self, xch: CData, buffer: CData, nr_chars: CData, clear: int, incremental: int, index: CData
    ) -> int: ...
    def xenpy_quiet_logger(self) -> CData: ...


_module = cast(CData, _xenctrl)
ffi = cast(Ffi, _module.ffi)
lib = cast(XenctrlLib, _module.lib)
