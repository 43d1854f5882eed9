# SPDX-License-Identifier: MIT
"""One connection of a block frontend: everything that is granted and bound for it."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from xenpy.backend import Keys
from xenpy.drivers.block.backend_keys import TransportOffer
from xenpy.drivers.block.front_protocol import MOST_SEGMENTS, indirect_pages
from xenpy.drivers.block.front_queue import FrontQueue
from xenpy.drivers.block.protocol import ABI_NATIVE, MAX_SEGMENTS
from xenpy.frontend import FrontendContext
from xenpy.ports import Ports

__all__ = ["TRANSPORT_KEYS", "Link", "Wishes"]

MAX_RING_PAGE_ORDER: Final = 4
MAX_QUEUES: Final = 16

TRANSPORT_KEYS: Final = re.compile(
    r"event-channel|ring-ref\d*|ring-page-order|num-ring-pages|multi-queue-num-queues|queue-\d+"
    r"|protocol|feature-persistent"
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a frontend asks for; it gets what the backend offers of it.

    Attributes:
        queues: 1 to 16.
        ring_page_order: 0 to 4; a page holds 32 requests.
        data_pages: for each queue, 4 KiB each; all that is in flight lies there.
        max_segments: of one request, a page each: 11 to 4096.
        persistent: promise to use the same pages all the time, which is done anyway.

    The kernel gives a domain 1024 pages for all of its frontends together unless
    /sys/module/xen_gntalloc/parameters/limit says otherwise.

    Raises:
        ValueError: one of them is out of range.
    """

    queues: int = 1
    ring_page_order: int = 2
    data_pages: int = 264
    max_segments: int = 256
    persistent: bool = True

    def __post_init__(self) -> None:
        for name, low, high in (
            ("queues", 1, MAX_QUEUES),
            ("ring_page_order", 0, MAX_RING_PAGE_ORDER),
            ("data_pages", MAX_SEGMENTS, 1 << 20),
            ("max_segments", MAX_SEGMENTS, MOST_SEGMENTS),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it can be {low} to {high}")

    def most_segments(self, offered: int) -> int:
        """How large a request may be that always finds room in its queue's pages."""
        most = min(self.max_segments, offered, self.data_pages)
        return max(MAX_SEGMENTS, min(most, self.data_pages - indirect_pages(most)))


class Link:
    """Rings, ports and pages, from the offer in InitWait to the close.

    Raises:
        XenError: there is no page or port to be had; nothing is held.
    """

    def __init__(self, context: FrontendContext, offer: TransportOffer, wishes: Wishes) -> None:
        self._order = min(wishes.ring_page_order, offer.ring_page_order)
        self._persistent = wishes.persistent
        self.queues: list[FrontQueue] = []
        with ExitStack() as held:
            share = held.enter_context(context.xen.open_share())
            self.ports = ports = Ports(context.xen.open_evtchn())
            held.callback(ports.close)
            for _ in range(min(wishes.queues, offer.queues)):
                queue = FrontQueue(
                    share, ports, context.peer, nr_pages=1 << self._order,
                    data_pages=wishes.data_pages, fail=context.on_failure,
                )  # fmt: skip
                held.callback(queue.close)
                self.queues.append(queue)
            self._held = held.pop_all()

    def keys(self) -> Keys:
        """What to publish with Initialised."""
        keys: dict[str, str | int] = {"protocol": ABI_NATIVE.name}
        if self._persistent:
            keys["feature-persistent"] = 1
        if self._order:
            keys["ring-page-order"] = self._order
        several = len(self.queues) > 1
        if several:
            keys["multi-queue-num-queues"] = len(self.queues)
        for number, queue in enumerate(self.queues):
            below = f"queue-{number}/" if several else ""
            keys[f"{below}event-channel"] = int(queue.port)
            for page, ref in enumerate(queue.ring_refs):
                keys[f"{below}ring-ref{page if self._order else ''}"] = int(ref)
        return keys

    def idlest(self) -> FrontQueue:
        """The queue with the fewest requests."""
        return min(self.queues, key=lambda queue: queue.in_flight)

    async def drained(self) -> None:
        """Return when nothing is in flight."""
        await asyncio.gather(*(queue.drained() for queue in self.queues))

    def close(self, reason: Exception) -> None:
        """Fail what is in flight and give everything back."""
        for queue in self.queues:
            queue.stop(reason)
        self._held.close()
