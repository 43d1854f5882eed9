# SPDX-License-Identifier: MIT
"""Names for the integers of Xen, so that a type checker tells them apart.

Lowest layer: imports nothing of xenpy.  Values follow xen/include/public/xen.h,
grant_table.h, event_channel.h and io/xenbus.h.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NewType

__all__ = [
    "DOM0",
    "DOMID_FIRST_RESERVED",
    "DOMID_SELF",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "PORTS_LIMIT",
    "DevId",
    "DomId",
    "GrantRef",
    "Port",
    "XenbusState",
]

DomId = NewType("DomId", int)
"""A domain's number: 0 .. 0x7FEF (domid_t)."""
DevId = NewType("DevId", int)
"""A device's number within its kind and domain; for disks the vdev, e.g. 51712 = xvda."""
GrantRef = NewType("GrantRef", int)
"""Index of an entry in the granting domain's grant table (grant_ref_t, 32 bits)."""
Port = NewType("Port", int)
"""An event channel of this domain (evtchn_port_t, 32 bits)."""

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
"""Xen's page: 4096 bytes on every architecture, whatever the kernel's page is."""

DOM0: Final = DomId(0)
PORTS_LIMIT: Final = 1 << 17
"""One more than an event channel's highest number: EVTCHN_FIFO_NR_CHANNELS of event_channel.h."""
DOMID_FIRST_RESERVED: Final = 0x7FF0
DOMID_SELF: Final = DomId(0x7FF0)


class XenbusState(IntEnum):
    """The states of a XenBus device (io/xenbus.h, enum xenbus_state)."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8
