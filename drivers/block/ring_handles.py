# SPDX-License-Identifier: MIT
"""What a queue holds of Xen's: its handles, the mapped ring, the bound port.

The same for an engine in Python and for the native one.  Owned by the queue's thread.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self

from xenpy.backend import DeviceContext, open_restricted
from xenpy.drivers.block.frontend_keys import QueueKeys
from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantTable, Mapping
from xenpy.types import Port

__all__ = ["RingHandles"]


class RingHandles:
    """Open them; `close` gives back whatever was opened, in reverse.

    Attributes:
        grants: this queue's own grant-table handle.
        channels: its own event-channel handle, good for the frontend's domain only.
        ring: the frontend's ring pages.
        port: ours, bound to the frontend's.
    """

    grants: GrantTable
    channels: EventChannels
    ring: Mapping
    port: Port

    def __init__(self, context: DeviceContext, keys: QueueKeys) -> None:
        self._context = context
        self._keys = keys
        self._held = ExitStack()

    def open(self) -> Self:
        """
        Raises:
            XenError: a page cannot be mapped or the port not bound.
        """
        context, keys = self._context, self._keys
        domid = context.domid
        self.grants = context.xen.open_grants()
        # Deferred like its mappings: it cannot close before the last of them.
        self._held.callback(context.deferred.close, self.grants, context.name)
        self.channels = self._held.enter_context(open_restricted(context.xen, domid))
        self.ring = self.grants.map(domid, keys.ring_refs, writable=True)
        self._held.callback(context.deferred.close, self.ring, context.name)
        self.port = self.channels.bind_interdomain(domid, keys.event_channel)
        return self

    def close(self) -> None:
        self._held.close()
