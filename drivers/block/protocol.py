# SPDX-License-Identifier: MIT
"""blkif on the wire: raw slots in, checked requests out.  Pure; no I/O, no shared memory.

Implements xen/include/public/io/blkif.h.  Sector numbers, `sectors` and the sectors of a
segment count 512 bytes whatever `sector-size` says: the reading that Xen 4.20 made the
rule, which Linux has always followed.

The functions here see private copies only: `ring.BackRing` has copied a slot out once
before it comes here (XSA-155).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from xenpy.ring import RingLayout
from xenpy.wire import CAbi, Record

__all__ = [
    "ABIS",
    "ABI_NATIVE",
    "ABI_X86_32",
    "ABI_X86_64",
    "MAX_SEGMENTS",
    "OP_DISCARD",
    "OP_FLUSH_DISKCACHE",
    "OP_INDIRECT",
    "OP_READ",
    "OP_WRITE",
    "OP_WRITE_BARRIER",
    "RSP_EOPNOTSUPP",
    "RSP_ERROR",
    "RSP_OKAY",
    "SECTOR_SHIFT",
    "SECTOR_SIZE",
    "Abi",
    "Disk",
    "Refusal",
    "Request",
    "Segment",
]

OP_READ: Final = 0
OP_WRITE: Final = 1
OP_WRITE_BARRIER: Final = 2
OP_FLUSH_DISKCACHE: Final = 3
OP_DISCARD: Final = 5
OP_INDIRECT: Final = 6

RSP_OKAY: Final = 0
RSP_ERROR: Final = -1
RSP_EOPNOTSUPP: Final = -2

SECTOR_SHIFT: Final = 9
SECTOR_SIZE: Final = 1 << SECTOR_SHIFT
LAST_SECTOR_OF_PAGE: Final = 7
MAX_SEGMENTS: Final = 11
"""BLKIF_MAX_SEGMENTS_PER_REQUEST."""


class Segment(NamedTuple):
    """Sectors `first` to `last`, both included, of the page behind `gref`."""

    gref: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Request:
    """A request that may be carried out: every number in it has been checked.

    Attributes:
        id: echoed in the response; any 64 bits.
        operation: OP_READ, OP_WRITE or OP_FLUSH_DISKCACHE.
        sector: where it starts, in 512-byte sectors.
        sectors: how many; `sector + sectors` is within the disk.  0 only for a flush.
        segments: the guest's pages.
    """

    id: int
    operation: int
    sector: int
    sectors: int
    segments: Sequence[Segment]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is answered without being carried out.

    Attributes:
        id, operation: echoed in the response.
        status: RSP_ERROR or RSP_EOPNOTSUPP.
        reason: for the log.
    """

    id: int
    operation: int
    status: int
    reason: str


@dataclass(frozen=True, slots=True)
class Disk:
    """What a request is checked against.

    Attributes:
        sectors: the disk's size in 512-byte sectors.
        readonly: whether writes are refused.
    """

    sectors: int
    readonly: bool


REQUEST_FIELDS: Final = {
    "operation": "B",
    "nr_segments": "B",
    "handle": "H",
    "id": "Q",
    "sector_number": "Q",
}
"""blkif_request up to `seg`, named as blkif.h names it."""
SEGMENT_FIELDS: Final = {"gref": "I", "first_sect": "B", "last_sect": "B"}
RESPONSE_FIELDS: Final = {"id": "Q", "operation": "B", "status": "h"}


class Abi:
    """The layout of requests and responses for one `protocol` string."""

    def __init__(self, name: str, abi: CAbi) -> None:
        self.name = name
        self.header = Record(abi, REQUEST_FIELDS)
        self.segment = Record(abi, SEGMENT_FIELDS)
        self.reply = Record(abi, RESPONSE_FIELDS)
        size = self.header.size + MAX_SEGMENTS * self.segment.size
        self.layout = RingLayout(request_size=size, response_size=self.reply.size)

    def __repr__(self) -> str:
        return f"Abi({self.name!r})"

    def parse(self, slot: bytes, disk: Disk) -> Request | Refusal:
        """Check a private copy of a request slot.  Never raises for what a guest wrote."""
        operation, nr_segments, _handle, ident, sector = self.header.unpack(slot)
        if operation not in (OP_READ, OP_WRITE, OP_FLUSH_DISKCACHE):
            # The id of an indirect or discard request is at the same offset.
            return Refusal(ident, operation, RSP_EOPNOTSUPP, f"operation {operation} is unknown")
        if nr_segments > MAX_SEGMENTS or (nr_segments == 0 and operation != OP_FLUSH_DISKCACHE):
            return Refusal(ident, operation, RSP_ERROR, f"{nr_segments} segments")
        start = self.header.size
        end = start + nr_segments * self.segment.size
        segments = [Segment(*fields) for fields in self.segment.iter_unpack(slot[start:end])]
        sectors = 0
        for _, first, last in segments:
            if first > last or last > LAST_SECTOR_OF_PAGE:
                reason = f"a segment of sectors {first} to {last} of a page"
                return Refusal(ident, operation, RSP_ERROR, reason)
            sectors += last - first + 1
        # Python's integers do not wrap, so that 2^64 needs no case of its own.
        if sectors and sector + sectors > disk.sectors:
            reason = f"{sectors} sectors at {sector} of a disk of {disk.sectors}"
            return Refusal(ident, operation, RSP_ERROR, reason)
        if disk.readonly and sectors and operation != OP_READ:
            return Refusal(ident, operation, RSP_ERROR, "a write to a read-only disk")
        return Request(ident, operation, sector, sectors, segments)

    def response(self, ident: int, operation: int, status: int) -> bytes:
        """A whole response slot.  What blkif.h leaves undefined is zero (XSA-216)."""
        return self.reply.pack(ident, operation, status)

    def pack_request(
        self,
        operation: int,
        ident: int,
        sector: int,
        segments: Sequence[tuple[int, int, int]],
        nr_segments: int | None = None,
    ) -> bytes:
        """A frontend's request slot.

        Args:
            segments: (gref, first sector, last sector); at most 11.
            nr_segments: what the header says, when it is to differ from the truth.
        """
        count = len(segments) if nr_segments is None else nr_segments
        slot = bytearray(self.layout.request_size)
        self.header.pack_into(slot, 0, operation, count, 0, ident, sector)
        for number, segment in enumerate(segments):
            offset = self.header.size + number * self.segment.size
            self.segment.pack_into(slot, offset, *segment)
        return bytes(slot)

    def unpack_response(self, slot: bytes) -> tuple[int, int, int]:
        """A frontend's view of a response: id, operation, status."""
        ident, operation, status = self.reply.unpack(slot)
        return ident, operation, status


ABI_X86_32: Final = Abi("x86_32-abi", CAbi.X86_32)
ABI_X86_64: Final = Abi("x86_64-abi", CAbi.X86_64)
ABI_NATIVE: Final = ABI_X86_32 if CAbi.native() is CAbi.X86_32 else ABI_X86_64
"""What a frontend that names no protocol speaks: the backend's own ABI."""

ABI_ARM: Final = Abi("arm-abi", CAbi.X86_64)
"""Both ARMs'; it is what their Linux writes."""

ABIS: Final = {abi.name: abi for abi in (ABI_X86_32, ABI_X86_64, ABI_ARM)} | {"native": ABI_NATIVE}
"""By `protocol` string (io/protocols.h)."""
