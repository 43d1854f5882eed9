# SPDX-License-Identifier: MIT
"""vchan's shared page (xen/include/public/io/libxenvchan.h).  Pure: bytes in, values out.

    offset  field
    0       left.cons, left.prod: u32 each       left: the client writes, the server reads
    8       right.cons, right.prod: u32 each     right: the server writes, the client reads
    16      left_order, right_order: u16 each    a ring has 2^order bytes
    20      cli_live, srv_live: u8 each
    22      cli_notify, srv_notify: u8 each
    24      grants: u32 each, those of left, then those of right
    1024    a ring of order 10
    2048    a ring of order 11

A ring of order 12 and more lies in pages of its own, which the list grants.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from xenpy.errors import PeerError
from xenpy.peer_keys import number
from xenpy.types import PAGE_SHIFT, PAGE_SIZE, GrantRef, Port

__all__ = [
    "CLIENT",
    "EVENT_CHANNEL",
    "MAX_ORDER",
    "MAX_SIZE",
    "MIN_ORDER",
    "NOTIFY_READ",
    "NOTIFY_WRITE",
    "RING_REF",
    "SERVER",
    "Keys",
    "Layout",
    "Live",
    "RingPlace",
    "Side",
    "parse_page",
]

NOTIFY_WRITE: Final = 1
"""VCHAN_NOTIFY_WRITE: tell me when you have written."""
NOTIFY_READ: Final = 2
"""VCHAN_NOTIFY_READ: tell me when you have read."""

MIN_ORDER: Final = 10
MAX_ORDER: Final = 20
"""MAX_RING_SHIFT of libxenvchan's init.c: two such rings have 512 grants."""
MAX_SIZE: Final = 1 << MAX_ORDER
IN_PAGE: Final[Mapping[int, int]] = {10: 1024, 11: 2048}
"""Where a ring of that order lies in the page."""

ORDERS: Final = struct.Struct("<HH")
ORDERS_OFFSET: Final = 16
GRANTS_OFFSET: Final = 24
RING_REF: Final = "ring-ref"
EVENT_CHANNEL: Final = "event-channel"


class Live(IntEnum):
    """What `cli_live` and `srv_live` say of a side."""

    GONE = 0
    HERE = 1
    NOT_YET = 2
    """Of the client only."""


@dataclass(frozen=True, slots=True)
class Side:
    """Offsets in the page, as one side sees them.

    Attributes:
        name: "server" or "client".
        live, peer_live: 1 while that side is there.
        wanted: where we say what the peer is to notify us of.
        asked: where the peer says what we are to notify it of.
        read, written: the index pairs of the ring that we read and of the one that we write.
    """

    name: str
    live: int
    peer_live: int
    wanted: int
    asked: int
    read: int
    written: int


SERVER: Final = Side("server", live=21, peer_live=20, wanted=22, asked=23, read=0, written=8)
CLIENT: Final = Side("client", live=20, peer_live=21, wanted=23, asked=22, read=8, written=0)


@dataclass(frozen=True, slots=True)
class RingPlace:
    """A ring's size and place.

    Attributes:
        order: 10 to 20.
    """

    order: int

    @property
    def size(self) -> int:
        """Bytes."""
        return 1 << self.order

    @property
    def pages(self) -> int:
        """Pages of its own: 0 if it lies in the first."""
        return 0 if self.order in IN_PAGE else 1 << (self.order - PAGE_SHIFT)

    @property
    def offset(self) -> int:
        """Where it begins, in the first page or in its own."""
        return IN_PAGE.get(self.order, 0)


@dataclass(frozen=True, slots=True)
class Layout:
    """The two rings of a channel.

    Raises:
        ValueError: an order is not within 10 to 20, both rings would lie in the same place, or
            the list of grants would reach into a ring.
    """

    left: RingPlace
    right: RingPlace

    def __post_init__(self) -> None:
        for name, ring in (("left", self.left), ("right", self.right)):
            if not MIN_ORDER <= ring.order <= MAX_ORDER:
                raise ValueError(
                    f"{name}-order is {ring.order}; there are {MIN_ORDER} to {MAX_ORDER}"
                )
        if self.left == self.right and not self.left.pages:
            raise ValueError(f"both rings have order {self.left.order}, and would be one")
        end = GRANTS_OFFSET + 4 * self.nr_grants
        for ring in (self.left, self.right):
            if not ring.pages and end > ring.offset:
                # libxenvchan makes no such channel, and looks for none.
                raise ValueError(
                    f"{self.nr_grants} grants reach into the ring at {ring.offset}: orders "
                    f"{self.left.order} and {self.right.order}"
                )

    @classmethod
    def of_orders(cls, left: int, right: int) -> Layout:
        return cls(RingPlace(left), RingPlace(right))

    @classmethod
    def of_sizes(cls, left: int, right: int) -> Layout:
        """Rings of at least so many bytes each, placed as libxenvchan_server_init does.

        Raises:
            ValueError: one is negative, or more than 1 MiB.
        """
        for size in (left, right):
            if not 0 <= size <= MAX_SIZE:
                raise ValueError(f"a ring of {size} bytes; {MAX_SIZE} is the most")
        small, large = (1 << order for order in IN_PAGE)
        if left <= small and right <= large:
            return cls.of_orders(10, 11)
        if left <= large and right <= small:
            return cls.of_orders(11, 10)
        orders = [max(PAGE_SHIFT, (size - 1).bit_length()) for size in (left, right)]
        if left <= large:
            orders[0] = 11
        elif right <= large:
            orders[1] = 11
        return cls.of_orders(*orders)

    @property
    def nr_grants(self) -> int:
        """Pages beside the first."""
        return self.left.pages + self.right.pages

    def pack(self, grants: list[GrantRef]) -> bytes:
        """The page's beginning in a fresh channel, from its orders on."""
        live_and_notify = bytes([Live.NOT_YET, Live.HERE, NOTIFY_WRITE, 0])
        orders = ORDERS.pack(self.left.order, self.right.order)
        return orders + live_and_notify + struct.pack(f"<{len(grants)}I", *grants)


def parse_page(page: bytes) -> tuple[Layout, list[GrantRef], list[GrantRef]]:
    """What a server says in its page: the rings, and the grants of left and of right.

    Args:
        page: a copy, 4096 bytes.

    Raises:
        PeerError: an order is out of range, or the rings do not fit.
    """
    assert len(page) == PAGE_SIZE
    try:
        layout = Layout.of_orders(*ORDERS.unpack_from(page, ORDERS_OFFSET))
    except ValueError as error:
        raise PeerError(str(error)) from None
    refs = [
        GrantRef(ref) for ref in struct.unpack_from(f"<{layout.nr_grants}I", page, GRANTS_OFFSET)
    ]
    return layout, refs[: layout.left.pages], refs[layout.left.pages :]


@dataclass(frozen=True, slots=True)
class Keys:
    """What a server publishes below its path.

    Attributes:
        ring_ref: the grant of the first page.
        port: its event channel.
    """

    ring_ref: GrantRef
    port: Port

    @classmethod
    def parse(cls, keys: Mapping[str, str]) -> Keys:
        """Hostile input.

        Raises:
            PeerError: one is missing, or no number, or 0, which libxenvchan takes for missing.
        """
        ring_ref, port = number(keys, RING_REF), number(keys, EVENT_CHANNEL)
        for name, value in ((RING_REF, ring_ref), (EVENT_CHANNEL, port)):
            if not value:
                raise PeerError(f"{name} is 0")
        return cls(GrantRef(ring_ref), Port(port))

    def items(self) -> dict[str, int]:
        return {RING_REF: int(self.ring_ref), EVENT_CHANNEL: int(self.port)}
