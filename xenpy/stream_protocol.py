# SPDX-License-Identifier: MIT
"""A protocol of your own that is bytes either way, and nothing else.

    CHAT = StreamProtocol("chat")

Sans-IO.  The rings are ring.h's flex ring (`xenpy.flex_ring`).
"""

from __future__ import annotations

from typing import Final

from xenpy.flex_ring import MAX_RING_ORDER
from xenpy.ring_protocol import check_name

__all__ = ["StreamProtocol"]

DEFAULT_ORDER: Final = 5


class StreamProtocol:
    """A name, and how large the rings may be.

    Args:
        name: of the device's kind in XenStore, as of a `RingProtocol`.
        max_ring_order: both rings together have up to 2 to the power of this pages, 1 to 9, half
            of them for either direction; by default 64 KiB each.

    Raises:
        ValueError: one of them is not as it says above.
    """

    def __init__(self, name: str, *, max_ring_order: int = DEFAULT_ORDER) -> None:
        check_name(name)
        if not 1 <= max_ring_order <= MAX_RING_ORDER:
            raise ValueError(f"max_ring_order is {max_ring_order}; 1 to {MAX_RING_ORDER} it can be")
        self.name = name
        self.max_ring_order = max_ring_order

    def __repr__(self) -> str:
        return f"StreamProtocol({self.name!r})"
