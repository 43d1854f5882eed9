# SPDX-License-Identifier: MIT
"""A `BlockEnvironment` over the fake Xen: two domains in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping

from xenpy.backend import XenAccess
from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantShare
from xenpy.testing.fake_xen import FakeXen
from xenpy.types import DOM0, DomId

__all__ = ["FakeEnvironment"]


class FakeEnvironment:
    """Domain 1 is the frontend's, domain 0 the backend's."""

    front_domid = DomId(1)
    back_domid = DOM0
    stranger_domid = DomId(2)

    def __init__(self) -> None:
        self.xen = FakeXen()

    def back_xen(self) -> XenAccess:
        return self.xen.domain(self.back_domid)

    def open_share(self) -> GrantShare:
        return self.xen.domain(self.front_domid).open_share()

    def open_channels(self) -> EventChannels:
        return self.xen.domain(self.front_domid).open_evtchn()

    def census(self) -> Mapping[str, int]:
        return {
            **self.xen.census(),
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
        }
