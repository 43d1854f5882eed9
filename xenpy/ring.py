# SPDX-License-Identifier: MIT
"""Rings in shared memory: request/response (`BackRing`, `FrontRing`) and bytes (`StreamIn`,
`StreamOut`).

The bookkeeping of xen/include/public/io/ring.h for a peer that is hostile.  What touches
shared memory is C (`include/xenpy/ring_core.h`): acquire, release, fences, slots copied out
once and written whole.  Here is what may be decided at leisure: sizes, limits, errors.

Nothing here waits or notifies: the caller owns the event channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from xenpy._ffi.stable import ffi, lib
from xenpy._ffi.types import CData
from xenpy.errors import PeerError
from xenpy.memory import Memory
from xenpy.types import PAGE_SIZE

__all__ = ["BackRing", "FrontRing", "RingLayout", "StreamIn", "StreamOut"]

HEADER_SIZE: Final = 64
"""Bytes before the first slot (ring.h: four indices and padding)."""
REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = 0, 4, 8, 12
INDEX_MASK: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class RingLayout:
    """The two sides of a slot, in bytes; a slot is as large as the larger one."""

    request_size: int
    response_size: int

    @property
    def slot_size(self) -> int:
        """The distance between slots: the size of ring.h's union.

        The C compiler rounds it up to the union's alignment; so must the sizes given.
        """
        return max(self.request_size, self.response_size)

    def entries(self, nr_pages: int) -> int:
        """How many slots `nr_pages` hold: the largest power of two that fits (__RING_SIZE).

        Raises:
            ValueError: not even one.
        """
        room = (nr_pages * PAGE_SIZE - HEADER_SIZE) // self.slot_size
        if min(self.request_size, self.response_size) < 1 or room < 1:
            raise ValueError(f"no slot of {self} fits into {nr_pages} pages")
        return 1 << (room.bit_length() - 1)


class _Ring:
    """What both halves have in common: the C state, and the memory it lies beside."""

    def __init__(
        self, memory: Memory, layout: RingLayout, nr_pages: int, produced: int, consumed: int
    ) -> None:
        if nr_pages < 1 or nr_pages * PAGE_SIZE > memory.size:
            raise ValueError(f"{nr_pages} pages in {memory.size} bytes")
        self.layout = layout
        self.entries = layout.entries(nr_pages)
        self._memory = memory
        self._state = ffi.new("struct xenpy_ring *")
        self._state.entries = self.entries
        self._state.request_size = layout.request_size
        self._state.response_size = layout.response_size
        self._state.slot_size = layout.slot_size
        self._state.produced = produced & INDEX_MASK
        self._state.consumed = consumed & INDEX_MASK

    def __repr__(self) -> str:
        state = self._state
        return (
            f"<{type(self).__name__} of {self.entries}, produced={state.produced}, "
            f"consumed={state.consumed}>"
        )


class BackRing(_Ring):
    """The backend's half: takes requests, puts responses.

    A new connection goes on where `rsp_prod` of the shared page stands, as ring.h's
    BACK_RING_ATTACH does: that is 0 in a fresh ring, and after a backend that went away
    everything behind it is unanswered.

    Args:
        memory: the frontend's pages.
        layout: the sizes of a request and a response.
        nr_pages: how many pages of `memory` are the ring: 1, 2, 4, ...
    """

    def __init__(self, memory: Memory, layout: RingLayout, *, nr_pages: int = 1) -> None:
        start = lib.xenpy_load_acquire(memory.pointer(RSP_PROD))
        super().__init__(memory, layout, nr_pages, start, start)
        self._buffer = ffi.new("uint8_t[]", self.entries * layout.request_size)

    @property
    def consumed(self) -> int:
        """The index of the next request, modulo 2^32."""
        return int(self._state.consumed)

    @property
    def in_flight(self) -> int:
        """Requests taken and not answered yet."""
        return int(self._state.consumed - self._state.produced) & INDEX_MASK

    def take(self, limit: int | None = None) -> list[bytes]:
        """Private copies of up to `limit` new requests, oldest first; [] if there is none.

        Raises:
            PeerError: `req_prod` is more than a ring ahead, or has gone backwards.
        """
        limit = self.entries if limit is None else min(limit, self.entries)
        count = lib.xenpy_back_take(self._state, self._memory.pointer(), self._buffer, limit)
        if count < 0:
            self._raise_overrun()
        return _split(self._buffer, count, self.layout.request_size)

    def push(self, responses: Sequence[bytes]) -> bool:
        """Publish responses, each to a request that was taken.

        Returns:
            Whether the frontend is to be notified.

        Raises:
            ValueError: more responses than requests in flight, or one of the wrong size.
        """
        joined = _join(responses, self.layout.response_size)
        wanted = lib.xenpy_back_push(self._state, self._memory.pointer(), joined, len(responses))
        if wanted < 0:
            raise ValueError(f"{len(responses)} responses to {self.in_flight} requests")
        return bool(wanted)

    def final_check(self) -> bool:
        """RING_FINAL_CHECK_FOR_REQUESTS: ask to be notified of the next request.

        Returns:
            True: there is one already.  False: it will bring an event.

        Raises:
            PeerError: as for `take`.
        """
        count = lib.xenpy_back_final_check(self._state, self._memory.pointer())
        if count < 0:
            self._raise_overrun()
        return count > 0

    def _raise_overrun(self) -> NoReturn:
        state = self._state
        raise PeerError(
            f"req_prod is out of bounds: req_cons={state.consumed}, rsp_prod={state.produced}, "
            f"a ring of {self.entries}"
        )


class FrontRing(_Ring):
    """The frontend's half: puts requests, takes responses.  Initialises the page.

    Args:
        memory: our pages, shared with the backend; anything in them is lost.
        layout: the sizes of a request and a response.
        nr_pages: how many pages of `memory` are the ring.
        start: where all indices begin; a test's way to the wrap at 2^32.
    """

    def __init__(
        self, memory: Memory, layout: RingLayout, *, nr_pages: int = 1, start: int = 0
    ) -> None:
        super().__init__(memory, layout, nr_pages, start, start)
        with memory.view(0, nr_pages * PAGE_SIZE) as view:
            view[:] = bytes(len(view))
        start &= INDEX_MASK
        lib.xenpy_store_release(memory.pointer(REQ_PROD), start)
        lib.xenpy_store_release(memory.pointer(RSP_PROD), start)
        lib.xenpy_store_release(memory.pointer(REQ_EVENT), (start + 1) & INDEX_MASK)
        lib.xenpy_store_release(memory.pointer(RSP_EVENT), (start + 1) & INDEX_MASK)
        self._buffer = ffi.new("uint8_t[]", self.entries * layout.response_size)

    @property
    def free(self) -> int:
        """Slots for requests (RING_FREE_REQUESTS)."""
        return self.entries - self.in_flight

    @property
    def in_flight(self) -> int:
        """Requests put whose response has not been taken."""
        return int(self._state.produced - self._state.consumed) & INDEX_MASK

    def put(self, requests: Sequence[bytes]) -> bool:
        """Publish requests.

        Returns:
            Whether the backend is to be notified.

        Raises:
            ValueError: more than `free`, or one of the wrong size.
        """
        joined = _join(requests, self.layout.request_size)
        wanted = lib.xenpy_front_put(self._state, self._memory.pointer(), joined, len(requests))
        if wanted < 0:
            raise ValueError(f"{len(requests)} requests into {self.free} slots")
        return bool(wanted)

    def take(self, limit: int | None = None) -> list[bytes]:
        """Private copies of up to `limit` new responses, oldest first; [] if there is none.

        Raises:
            PeerError: `rsp_prod` is ahead of what was asked.
        """
        limit = self.entries if limit is None else min(limit, self.entries)
        count = lib.xenpy_front_take(self._state, self._memory.pointer(), self._buffer, limit)
        if count < 0:
            self._raise_overrun()
        return _split(self._buffer, count, self.layout.response_size)

    def final_check(self) -> bool:
        """RING_FINAL_CHECK_FOR_RESPONSES: ask to be notified of the next response.

        Returns:
            True: there is one already.  False: it will bring an event.

        Raises:
            PeerError: as for `take`.
        """
        count = lib.xenpy_front_final_check(self._state, self._memory.pointer())
        if count < 0:
            self._raise_overrun()
        return count > 0

    def _raise_overrun(self) -> NoReturn:
        state = self._state
        raise PeerError(
            f"rsp_prod is out of bounds: rsp_cons={state.consumed}, req_prod={state.produced}"
        )


class _Stream:
    """One direction of a byte ring: a power of two of bytes and two free-running indices.

    Whoever attaches goes on where our index stands in the shared memory: at 0 in a fresh ring,
    and after one of ours that went away where that one stopped.
    """

    _names = ("ours", "theirs")

    def __init__(
        self, memory: Memory, data: int, size: int, ours: int, theirs: int, data_in: Memory | None
    ) -> None:
        if size < 1 or size & (size - 1):
            raise ValueError(f"a byte ring of {size} bytes; a power of two is needed")
        bytes_in = memory if data_in is None else data_in
        places = (bytes_in, data, size), (memory, ours, 4), (memory, theirs, 4)
        for where, offset, length in places:
            if not 0 <= offset <= where.size - length:
                raise ValueError(f"{length} bytes at {offset} leave {where.size} bytes")
        self.size = size
        self._memory = memory
        self._bytes_in = bytes_in
        self._data = bytes_in.pointer(data)
        self._ours = memory.pointer(ours)
        self._theirs = memory.pointer(theirs)
        self._state = ffi.new("struct xenpy_stream *")
        self._state.size = size
        self._state.index = lib.xenpy_load_acquire(self._ours)

    def native(self) -> tuple[CData, CData, CData, CData]:
        """For users of `_ffi`: state, bytes, our index and theirs, while the memory lasts."""
        return self._state, self._data, self._ours, self._theirs

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.size} bytes at {self._state.index}>"

    def _check(self) -> None:
        """Raises StaleHandleError where the pointers are not valid any more."""
        self._memory.pointer()
        self._bytes_in.pointer()

    def _bounded(self, count: int) -> int:
        if count < 0:
            ours, theirs = self._names
            index = self._state.index
            raise PeerError(f"{theirs} is out of bounds: {ours}={index}, {self.size} bytes")
        return count


class StreamIn(_Stream):
    """The consumer of a byte ring, such as `out` of io/console.h for the backend.

    Args:
        memory: what holds ring and indices.
        data, size: where the bytes are, and how many; `size` is a power of two.
        cons, prod: where the two indices are, 32 bits each.
        data_in: what holds the bytes, if it is not `memory`.

    Every call raises what is listed here.

    Raises:
        PeerError: the producer's index is more than a ring ahead.
        StaleHandleError: the memory is closed.
    """

    _names = ("cons", "prod")

    def __init__(
        self, memory: Memory, *, data: int, size: int, cons: int, prod: int,
        data_in: Memory | None = None,
    ) -> None:  # fmt: skip
        super().__init__(memory, data, size, cons, prod, data_in)

    @property
    def queued(self) -> int:
        """How many bytes there are to read."""
        self._check()
        return self._bounded(lib.xenpy_stream_queued(self._state, self._theirs))

    def read(self, limit: int | None = None) -> bytes:
        """Up to `limit` bytes; b"" when the ring is empty.  The producer may want to know."""
        queued = self.queued
        if not (count := queued if limit is None else min(queued, max(limit, 0))):
            return b""
        start = self._state.index & (self.size - 1)
        first = min(count, self.size - start)
        # One copy, the one that makes the bytes; what `xenpy_stream_read` says of it holds here.
        content: bytes = ffi.buffer(self._data + start, first)[:]
        if first < count:
            content += ffi.buffer(self._data, count - first)[:]
        lib.xenpy_stream_taken(self._state, self._ours, count)
        return content

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """As many bytes as there are and as fit into `buffer`; 0 when the ring is empty."""
        self._check()
        with ffi.from_buffer("uint8_t[]", buffer, require_writable=True) as out:
            count = lib.xenpy_stream_read(
                self._state, self._data, self._ours, self._theirs, out, len(out)
            )
        return count if count >= 0 else self._bounded(count)


class StreamOut(_Stream):
    """The producer of a byte ring.

    Args:
        memory: what holds ring and indices.
        data, size: where the bytes are, and how many; `size` is a power of two.
        prod, cons: where the two indices are, 32 bits each.
        data_in: what holds the bytes, if it is not `memory`.

    Every call raises what is listed here.

    Raises:
        PeerError: the consumer's index is ahead of ours, or more than a ring behind.
        StaleHandleError: the memory is closed.
    """

    _names = ("prod", "cons")

    def __init__(
        self, memory: Memory, *, data: int, size: int, prod: int, cons: int,
        data_in: Memory | None = None,
    ) -> None:  # fmt: skip
        super().__init__(memory, data, size, prod, cons, data_in)

    @property
    def unread(self) -> int:
        """How many bytes the consumer has not taken yet."""
        self._check()
        return self._bounded(lib.xenpy_stream_unread(self._state, self._theirs))

    def write(self, content: bytes | bytearray | memoryview) -> int:
        """Put as much of `content` as fits.  Returns how many bytes; the consumer may want to
        know."""
        self._check()
        # Released at once: the frames of a PeerError would keep a bytearray from being resized.
        with ffi.from_buffer("uint8_t[]", content) as source:
            count = lib.xenpy_stream_write(
                self._state, self._data, self._ours, self._theirs, source, len(source)
            )
        return count if count >= 0 else self._bounded(count)


def _split(buffer: CData, count: int, size: int) -> list[bytes]:
    if not count:
        return []
    content = bytes(ffi.buffer(buffer, count * size))
    return [content[start : start + size] for start in range(0, count * size, size)]


def _join(messages: Sequence[bytes], size: int) -> bytes:
    for message in messages:
        if len(message) != size:
            raise ValueError(f"a message of {len(message)} bytes, {size} expected")
    return b"".join(messages)
