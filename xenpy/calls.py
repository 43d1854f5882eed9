# SPDX-License-Identifier: MIT
"""How a native engine reaches Xen: handles of ours as a table of C functions.

Layer 2.  `include/xenpy/calls.h` declares the table.  The engine borrows the handles: whoever
made the table keeps it, and them, for as long as the engine runs.
"""

from __future__ import annotations

from xenpy._ffi.stable import ffi
from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantTable

__all__ = ["Calls"]


class Calls:
    """A `struct xenpy_calls`, for one thread.

    Args:
        grants: maps, unmaps and copies.
        channels: notifies, and says which ports are pending.

    Attributes:
        address: of the structure.
    """

    def __init__(self, grants: GrantTable, channels: EventChannels) -> None:
        lib, grants_handle = grants.native()
        _, channels_handle = channels.native()
        self._table = ffi.new("struct xenpy_calls *")
        lib.xenpy_calls_init(self._table, grants_handle, channels_handle)
        self._owners = grants, channels
        self.address = int(ffi.cast("uintptr_t", self._table))
