# SPDX-License-Identifier: MIT
"""A `BlockEnvironment` and `HandlesEnvironment` over the fake Xen: two domains in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

from xenpy.backend import XenAccess
from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantShare
from xenpy.handles import Handle
from xenpy.testing.fake_xen import FakeXen
from xenpy.types import DOM0, DomId, GrantRef, Port

__all__ = ["FakeEnvironment"]


class FakeEnvironment:
    """Domain 1 is the frontend's, domain 0 the backend's."""

    front_domid = DomId(1)
    back_domid = DOM0
    stranger_domid = DomId(2)

    def __init__(self) -> None:
        self.xen = FakeXen()
        for domid in (self.front_domid, self.back_domid):
            self.xen.domain(domid)

    def back_xen(self) -> XenAccess:
        return self.xen.domain(self.back_domid)

    def open_share(self) -> GrantShare:
        return self.xen.domain(self.front_domid).open_share()

    def open_channels(self) -> EventChannels:
        return self.xen.domain(self.front_domid).open_evtchn()

    def start_mapper(self, ref: GrantRef, offset: int, remote_port: Port) -> FakeProcess:
        """Its death is what the kernel does then: first the memory goes, then the files."""
        table, channels = self.back_xen().open_grants(), self.back_xen().open_evtchn()
        port = channels.bind_interdomain(self.front_domid, remote_port)
        table.map(self.front_domid, [ref], notify_offset=offset, notify_port=port)
        return FakeProcess(ref, table, channels)

    def start_sharer(self, offset: int, remote_port: Port) -> FakeProcess:
        share, channels = self.open_share(), self.open_channels()
        port = channels.bind_interdomain(self.back_domid, remote_port)
        pages = share.share(self.back_domid, 1, notify_offset=offset, notify_port=port)
        with pages.view(offset, 1) as view:
            view[0] = 1
        return FakeProcess(pages.refs[0], share, channels)

    def census(self) -> Mapping[str, int]:
        return {
            **self.xen.census(),
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
        }


class FakeProcess:
    """What a process of a fake domain holds."""

    def __init__(self, ref: GrantRef, *handles: Handle) -> None:
        self.ref = ref
        self._handles = handles

    def kill(self) -> None:
        for handle in self._handles:
            handle.close()
