# SPDX-License-Identifier: MIT
"""The tutorial's ring on a real Xen: domain 0 is its own guest."""

from __future__ import annotations

from select import select

from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantShare, GrantTable
from xenpy.ring import BackRing, FrontRing, RingLayout
from xenpy.types import DOM0

layout = RingLayout(request_size=8, response_size=8)
with GrantShare() as share, GrantTable() as grants, EventChannels() as ours, \
        EventChannels() as theirs:  # fmt: skip
    page = share.share(DOM0, 1)
    front, back = FrontRing(page, layout), BackRing(grants.map(DOM0, page.refs), layout)
    port = ours.bind_interdomain(DOM0, theirs.bind_unbound(DOM0))
    front.put([b"question"])
    wanted = back.take() and back.push([b"answered"])
    ours.notify(port)
    select([theirs], [], [], 10)
    print(front.take(), wanted, theirs.pending())
