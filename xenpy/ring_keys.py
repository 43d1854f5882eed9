# SPDX-License-Identifier: MIT
"""Where a frontend says which rings it has granted, for a protocol of your own: blkif.h's keys.

    ring-ref | ring-page-order, ring-ref0 ...     the ring's pages
    event-channel                                 its port
    multi-queue-num-queues, queue-N/...           of several rings, each with these two

Sans-IO.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from xenpy.errors import PeerError
from xenpy.peer_keys import number
from xenpy.types import GrantRef, Port

__all__ = ["MAX_QUEUES", "MAX_RING_PAGE_ORDER", "NUM_QUEUES", "TRANSPORT_KEYS", "RingPlace",
           "read_rings", "written"]  # fmt: skip

TRANSPORT_KEYS: Final = re.compile(
    r"ring-ref\d*|ring-page-order|event-channel|protocol|multi-queue-num-queues|queue-\d+"
)
"""What a frontend's directory has of a connection."""
MAX_RING_PAGE_ORDER: Final = "max-ring-page-order"
MAX_QUEUES: Final = "multi-queue-max-queues"
"""What the backend offers."""
RING_PAGE_ORDER: Final = "ring-page-order"
NUM_QUEUES: Final = "multi-queue-num-queues"


@dataclass(frozen=True, slots=True)
class RingPlace:
    """A ring: the grants of its pages, and the frontend's port."""

    refs: Sequence[GrantRef]
    port: Port


def written(places: Sequence[RingPlace]) -> Mapping[str, int]:
    """The keys that say so.  One ring of one page has the keys that every backend knows."""
    keys: dict[str, int] = {}
    nr_pages = len(places[0].refs)
    if nr_pages > 1:
        keys[RING_PAGE_ORDER] = nr_pages.bit_length() - 1
    if len(places) > 1:
        keys[NUM_QUEUES] = len(places)
    for below, place in zip(_prefixes(len(places)), places, strict=True):
        keys |= zip(_ref_names(below, nr_pages), map(int, place.refs), strict=True)
        keys[f"{below}event-channel"] = int(place.port)
    return keys


def read_rings(
    keys: Mapping[str, str], *, max_ring_page_order: int, max_rings: int
) -> Sequence[RingPlace]:
    """What a frontend's keys say.

    Raises:
        PeerError: one is missing or no number, there is more than was offered, or two rings
            have a page or a port in common.
    """
    order = number(keys, RING_PAGE_ORDER, 0)
    if order > max_ring_page_order:
        raise PeerError(f"{RING_PAGE_ORDER} is {order}, and {max_ring_page_order} was offered")
    count = number(keys, NUM_QUEUES, 1)
    if not 1 <= count <= max_rings:
        raise PeerError(f"{NUM_QUEUES} is {count}, and 1 to {max_rings} were offered")
    places = [
        RingPlace(
            [GrantRef(number(keys, name)) for name in _ref_names(below, 1 << order)],
            Port(number(keys, f"{below}event-channel")),
        )
        for below in _prefixes(count)
    ]
    refs = [ref for place in places for ref in place.refs]
    if len(set(refs)) < len(refs) or len({place.port for place in places}) < count:
        raise PeerError("the same page or port is given twice")
    return places


def _prefixes(count: int) -> Sequence[str]:
    return [f"queue-{queue}/" for queue in range(count)] if count > 1 else [""]


def _ref_names(below: str, nr_pages: int) -> Sequence[str]:
    if nr_pages == 1:
        return [f"{below}ring-ref"]
    return [f"{below}ring-ref{page}" for page in range(nr_pages)]
