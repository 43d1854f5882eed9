# SPDX-License-Identifier: MIT
"""What a ring carries, for whoever looks on: records that an engine leaves and others read.

Layer 2; `xenpy/include/xenpy/trace.h` is the format and says why no record is ever half of one.
The engine waits for no reader: one that is too slow is told how many records it has missed.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from typing import Final, NamedTuple

from xenpy._ffi.stable import ffi, lib
from xenpy.errors import XenError
from xenpy.memory import LocalMemory

__all__ = [
    "RECORD", "REQUEST_LIMIT", "RESPONSE_LIMIT", "Trace", "TraceReader", "TraceRecord",
]  # fmt: skip

RECORD: Final = struct.Struct("=QQQIHH112s16s")
"""struct xenpy_trace_record."""
REQUEST_LIMIT: Final = 112
RESPONSE_LIMIT: Final = 16
"""Bytes of a request, and of a response, that a record keeps."""
READ_LIMIT: Final = 512
"""Records copied out in one call."""
INDEX_MASK: Final = 0xFFFF_FFFF


class TraceRecord(NamedTuple):
    """A request that was answered.

    Attributes:
        taken, answered: ns of CLOCK_MONOTONIC: its batch was copied out of the ring; its response
            was about to be published.
        detail: what the driver knows beside the message.
        position: of the request in the ring: its index, modulo 2^32.
        request_size, response_size: of the messages in the ring, of which the first `REQUEST_LIMIT`
            and `RESPONSE_LIMIT` bytes are here.
        request, response: private copies.  What the other side wrote is as it wrote it.
    """

    taken: int
    answered: int
    detail: int
    position: int
    request_size: int
    response_size: int
    request: bytes
    response: bytes


class Trace:
    """The engine's side: one for each ring that is served.  2.5 MiB of memory, which nobody
    touches, and which therefore is not there, until somebody reads.

    Attributes:
        fd: of the memory, for an engine in a process of its own.
    """

    def __init__(self) -> None:
        size = lib.xenpy_trace_size()
        self.fd, self._memory = LocalMemory.shareable("xenpy-trace", size)
        self._head = ffi.cast("struct xenpy_trace *", self._memory.pointer())
        self._head.version, self._head.size = lib.XENPY_TRACE_VERSION, size

    @property
    def address(self) -> int:
        """For an engine in this process."""
        return self._memory.address

    @property
    def closed(self) -> bool:
        return self._memory.closed

    def taken(self) -> int:
        """For an engine in Python: when its batch was taken, or 0 if nobody wants to know."""
        return lib.xenpy_trace_taken(self._head)

    def put(self, taken: int, index: int, detail: int, request: bytes, response: bytes) -> None:
        """Record one request, just before its response is published.

        Args:
            taken: what `taken` gave for its batch.
            index: of the request in the ring, modulo 2^32.
        """
        lib.xenpy_trace_put(
            self._head,
            taken,
            index & INDEX_MASK,
            detail,
            request,
            len(request),
            response,
            len(response),
        )

    def reader_fd(self) -> int:
        """A descriptor that can read the memory and not write it; the caller closes it."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def want(self, by: int) -> None:
        """So many readers more, or with a negative number fewer.  Nothing if it is closed."""
        if not self.closed:
            self._head.wanted += by

    def close(self) -> None:
        """Tell the readers that nothing comes any more.  The engine has ended."""
        if self.closed:
            return
        self._head.ended = 1
        del self._head
        self._memory.close()
        os.close(self.fd)
        self.fd = -1


class TraceReader:
    """The other side; a context manager.  It sees what is recorded from now on.

    Args:
        fd: of a `Trace`; stays the caller's.

    Attributes:
        lost: records that were written over before they were read.

    Raises:
        XenError: EPROTO, it is of another version.
    """

    def __init__(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        if size != lib.xenpy_trace_size():
            raise XenError(errno.EPROTO, "trace", "another version of xenpy serves", size=size)
        self._area = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        self._export = ffi.from_buffer("char[]", self._area)
        self._head = ffi.cast("struct xenpy_trace *", self._export)
        if self._head.version != lib.XENPY_TRACE_VERSION:
            self.close()
            raise XenError(errno.EPROTO, "trace", "another version of xenpy serves")
        self._next = ffi.new("uint64_t *", lib.xenpy_trace_written(self._head))
        self._out = ffi.new(f"struct xenpy_trace_record[{READ_LIMIT}]")
        self._bytes = memoryview(ffi.buffer(self._out))
        self.lost = 0

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        """Whether nothing comes any more; what was written before is still to be read."""
        return bool(self._head.ended)

    def read(self) -> list[TraceRecord]:
        """At most `READ_LIMIT` records, in the order in which they were answered."""
        return [TraceRecord._make(row) for row in RECORD.iter_unpack(self.read_raw())]

    def read_raw(self) -> memoryview:
        """As `read`, the records as they are in memory; good until the next call."""
        before = self._next[0]
        count = lib.xenpy_trace_read(self._head, self._next, self._out, READ_LIMIT)
        self.lost += self._next[0] - before - count
        return self._bytes[: count * RECORD.size]

    def close(self) -> None:
        """Harmless when closed."""
        if self._area.closed:
            return
        # The pointer goes first: mmap refuses to close while it is exported.
        del self._head
        ffi.release(self._export)
        del self._export
        self._area.close()
