# SPDX-License-Identifier: MIT
"""Look into rings between two others, from time to time: `xenpy/include/xenpy/peek.h`.

Layer 2: memory in, records out.  Reading alone: neither end can tell that somebody looks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from xenpy._ffi.stable import ffi, lib
from xenpy.memory import Memory
from xenpy.ring import RingLayout
from xenpy.trace import RESPONSE_LIMIT, TraceRecord
from xenpy.types import PAGE_SIZE

__all__ = ["PeekLayout", "Peeker"]

SIGHT: Final = struct.Struct("=QIHH112s")
"""struct xenpy_sight."""
LIMIT: Final = 8192
"""Sights of one call: 1 MiB.  Two rings of 16 pages are 2048 a look."""
ID: Final = struct.Struct("=Q")


def _always(_request: bytes, _response: bytes) -> bool:
    """A protocol whose messages have nothing else in common."""
    return True


@dataclass(frozen=True, slots=True)
class PeekLayout:
    """What has to be known of a protocol to tell which answer is whose.

    Attributes:
        ring: the sizes of a request and a response, at most 112 bytes each.
        request_id, response_id: where in them are the 64 bits that they have in common.
        answers: whether a response, whose id is the request's, is an answer to it.  In the place of
            either the other half may have begun to write something else.
    """

    ring: RingLayout
    request_id: int
    response_id: int
    answers: Callable[[bytes, bytes], bool] = _always


class Peeker:
    """Looks at all rings of a device.

    Args:
        rings: their pages, mapped by the caller, who closes them; a power of two of each.
        layout: of all of them.
    """

    def __init__(self, rings: Sequence[Memory], layout: PeekLayout) -> None:
        self._layout = layout
        self._pages = rings
        self._peeks = ffi.new(f"struct xenpy_peek[{len(rings)}]")
        self._entries: list[int] = []
        for number, pages in enumerate(rings):
            peek = self._peeks[number]
            entries = layout.ring.entries(pages.size // PAGE_SIZE)
            self._entries.append(entries)
            peek.shared, peek.entries = pages.pointer(), entries
            peek.slot_size = layout.ring.slot_size
            peek.request_size = layout.ring.request_size
            peek.response_size = layout.ring.response_size
            lib.xenpy_peek_begin(self._peeks + number)
        self._out = ffi.new(f"struct xenpy_sight[{LIMIT}]")
        self._bytes = memoryview(ffi.buffer(self._out))
        # By ring: the requests that were seen and whose answer was not, by id, oldest first.
        self._waiting: list[dict[int, tuple[int, int, bytes]]] = [{} for _ in rings]
        self._unanswered = 0

    def look(self, interval: int, until: int) -> list[tuple[int, TraceRecord]]:
        """Look every `interval` ns until CLOCK_MONOTONIC shows `until`; blocks so long, and other
        threads run.

        Returns:
            The ring and the record of each request whose answer was seen too.  The times are those
            of the looks; `detail` is 0.

        Raises:
            StaleHandleError: the pages are closed.
        """
        for pages in self._pages:
            pages.pointer()
        count = lib.xenpy_peek_run(self._peeks, len(self._pages), interval, until, self._out, LIMIT)
        found: list[tuple[int, TraceRecord]] = []
        for when, index, ring, answer, message in SIGHT.iter_unpack(
            self._bytes[: count * SIGHT.size]
        ):
            if answer:
                record = self._answered(ring, when, message)
                if record is not None:
                    found.append((ring, record))
            else:
                self._asked(ring, when, index, message)
        return found

    @property
    def asked(self) -> int:
        """Requests that there were, seen or not: the indices say so."""
        return int(sum(peek.asked for peek in self._peeks))

    @property
    def lost(self) -> int:
        """Requests that were not seen, or whose answer was not."""
        return int(sum(peek.lost_requests for peek in self._peeks)) + self._unanswered

    @property
    def waiting(self) -> int:
        """Requests whose answer may still be seen."""
        return sum(map(len, self._waiting))

    def _asked(self, ring: int, when: int, index: int, message: bytes) -> None:
        waiting = self._waiting[ring]
        (ident,) = ID.unpack_from(message, self._layout.request_id)
        # Used again, or a ring of others came after it: its answer was not seen.
        self._unanswered += waiting.pop(ident, None) is not None
        while waiting and len(waiting) >= self._entries[ring]:
            del waiting[next(iter(waiting))]
            self._unanswered += 1
        waiting[ident] = when, index, message

    def _answered(self, ring: int, when: int, message: bytes) -> TraceRecord | None:
        (ident,) = ID.unpack_from(message, self._layout.response_id)
        asked = self._waiting[ring].get(ident)
        if asked is None or not self._layout.answers(asked[2], message):
            return None
        del self._waiting[ring][ident]
        taken, index, request = asked
        sizes = self._layout.ring
        response = message[:RESPONSE_LIMIT]
        return TraceRecord(
            taken, when, 0, index, sizes.request_size, sizes.response_size, request, response
        )
