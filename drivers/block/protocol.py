# SPDX-License-Identifier: MIT
"""blkif on the wire: raw slots in, checked requests out.  Pure; no I/O, no shared memory.

Implements xen/include/public/io/blkif.h.  Sector numbers, `sectors` and the sectors of a
segment count 512 bytes whatever `sector-size` says: the reading that Xen 4.20 made the
rule, which Linux has always followed.  Where a disk's `Disk.unit` says so they count
`sector-size`, as blkif.h had it before and Windows' frontend does.

The functions here see private copies only: `ring.BackRing` has copied a slot out once
before it comes here (XSA-155).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias, cast

from xenpy.ring import RingLayout
from xenpy.types import PAGE_SIZE, GrantRef
from xenpy.wire import CAbi, Record

__all__ = [
    "ABIS",
    "ABI_NATIVE",
    "ABI_X86_32",
    "ABI_X86_64",
    "DISCARD_SECURE",
    "MAX_INDIRECT_PAGES",
    "MAX_INDIRECT_SEGMENTS",
    "MAX_SEGMENTS",
    "OPERATION_NAMES",
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
    "VDISK_CDROM",
    "VDISK_READONLY",
    "VDISK_REMOVABLE",
    "Abi",
    "Disk",
    "Indirect",
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

VDISK_CDROM: Final = 1
VDISK_REMOVABLE: Final = 2
VDISK_READONLY: Final = 4
"""The bits of `info`."""

OPERATION_NAMES: Final = {
    OP_READ: "read",
    OP_WRITE: "write",
    OP_WRITE_BARRIER: "barrier",
    OP_FLUSH_DISKCACHE: "flush",
    OP_DISCARD: "discard",
}

SECTOR_SHIFT: Final = 9
SECTOR_SIZE: Final = 1 << SECTOR_SHIFT
LAST_SECTOR_OF_PAGE: Final = 7
MAX_SEGMENTS: Final = 11
"""BLKIF_MAX_SEGMENTS_PER_REQUEST."""
MAX_INDIRECT_SEGMENTS: Final = 256
"""Segments of an indirect request: what we offer, and what blkback does."""
MAX_INDIRECT_PAGES: Final = 8
"""BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST."""
DISCARD_SECURE: Final = 1
"""BLKIF_DISCARD_SECURE, a bit of `flag`."""

MAY_BE_EMPTY: Final = (OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER)
WITH_SEGMENTS: Final = (OP_READ, OP_WRITE, *MAY_BE_EMPTY)


Segment: TypeAlias = tuple[GrantRef, int, int]
"""gref, first, last: sectors `first` to `last`, both included, of the page behind `gref`.  What
struct unpacks, and nothing made of it: there is one for each page of data."""


class Request(NamedTuple):
    """A request that may be carried out: every number in it has been checked.

    Attributes:
        id: echoed in the response; any 64 bits.
        operation: OP_READ, OP_WRITE, OP_WRITE_BARRIER, OP_FLUSH_DISKCACHE or OP_DISCARD.
        sector: where it starts, in 512-byte sectors.
        sectors: how many; `sector + sectors` is within the disk.  0 only for a flush or a
            barrier.
        segments: the guest's pages, of `sectors` in all; none for a discard.
    """

    id: int
    operation: int
    sector: int
    sectors: int
    segments: Sequence[Segment]


@dataclass(frozen=True, slots=True)
class Indirect:
    """A request whose segments are in pages of the guest's, which are still to be copied.

    Attributes:
        id, sector: as in `Request`; the sector is not checked yet.
        operation: OP_READ or OP_WRITE; the response names it, not OP_INDIRECT.
        count: how many segments; 1 to `MAX_INDIRECT_SEGMENTS`.
        grefs: the pages that hold them, in order, and no more than they need.
    """

    id: int
    operation: int
    sector: int
    count: int
    grefs: tuple[int, ...]

    @property
    def parts(self) -> Iterator[tuple[int, int]]:
        """What to copy: gref, and the bytes from the start of its page that are used."""
        left = self.count * SEGMENT_SIZE
        for gref in self.grefs:
            yield gref, min(left, PAGE_SIZE)
            left -= PAGE_SIZE


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
        discard: whether OP_DISCARD is offered.
        secure_discard: whether it is offered with DISCARD_SECURE.
        sector_size: what a request begins and ends at multiples of, in bytes.
        unit: what sector numbers count, in bytes: `SECTOR_SIZE`, or, for frontends that read
            blkif.h as it was until Xen 4.20, `sector_size`.
    """

    sectors: int
    readonly: bool
    discard: bool = False
    secure_discard: bool = False
    sector_size: int = SECTOR_SIZE
    unit: int = SECTOR_SIZE


REQUEST_FIELDS: Final = {
    "operation": "B",
    "nr_segments": "B",
    "handle": "H",
    "id": "Q",
    "sector_number": "Q",
}
"""blkif_request up to `seg`, named as blkif.h names it."""
SEGMENT_FIELDS: Final = {"gref": "I", "first_sect": "B", "last_sect": "B"}
SEGMENT_SIZE: Final = 8
"""sizeof(struct blkif_request_segment), the same for every ABI."""
SEGMENTS_PER_PAGE: Final = PAGE_SIZE // SEGMENT_SIZE
DISCARD_FIELDS: Final = {
    "operation": "B",
    "flag": "B",
    "handle": "H",
    "id": "Q",
    "sector_number": "Q",
    "nr_sectors": "Q",
}
"""blkif_request_discard."""
INDIRECT_FIELDS: Final = {
    "operation": "B",
    "indirect_op": "B",
    "nr_segments": "H",
    "id": "Q",
    "sector_number": "Q",
    "handle": "H",
    **{f"indirect_grefs[{page}]": "I" for page in range(MAX_INDIRECT_PAGES)},
}
"""blkif_request_indirect."""
RESPONSE_FIELDS: Final = {"id": "Q", "operation": "B", "status": "h"}


class Abi:
    """The layout of requests and responses for one `protocol` string."""

    def __init__(self, name: str, abi: CAbi) -> None:
        self.name = name
        self.header = Record(abi, REQUEST_FIELDS)
        self.segment = Record(abi, SEGMENT_FIELDS)
        self.discard = Record(abi, DISCARD_FIELDS)
        self.indirect = Record(abi, INDIRECT_FIELDS)
        self.reply = Record(abi, RESPONSE_FIELDS)
        unpack = self.segment.iter_unpack
        self._segments = cast("Callable[[bytes], Iterator[Segment]]", unpack)
        size = self.header.size + MAX_SEGMENTS * self.segment.size
        self.layout = RingLayout(request_size=size, response_size=self.reply.size)

    def __repr__(self) -> str:
        return f"Abi({self.name!r})"

    def parse(self, slot: bytes, disk: Disk) -> Request | Indirect | Refusal:
        """Check a private copy of a request slot.  Never raises for what a guest wrote."""
        operation, nr_segments, _handle, ident, sector = self.header.unpack(slot)
        if operation == OP_DISCARD:
            return self._parse_discard(slot, disk)
        if operation == OP_INDIRECT:
            return self._parse_indirect(slot)
        if operation not in WITH_SEGMENTS:
            # Every kind of request has its id at the same offset.
            return Refusal(ident, operation, RSP_EOPNOTSUPP, f"operation {operation} is unknown")
        if nr_segments > MAX_SEGMENTS or (nr_segments == 0 and operation not in MAY_BE_EMPTY):
            return Refusal(ident, operation, RSP_ERROR, f"{nr_segments} segments")
        start = self.header.size
        segments = [*self._segments(slot[start : start + nr_segments * SEGMENT_SIZE])]
        return _checked(ident, operation, sector, segments, disk)

    def resolve(self, indirect: Indirect, table: bytes, disk: Disk) -> Request | Refusal:
        """Check the segments of an indirect request.  Never raises for what a guest wrote.

        Args:
            table: a private copy of all its `parts`, one after the other.
        """
        segments = [*self._segments(table[: indirect.count * SEGMENT_SIZE])]
        return _checked(indirect.id, indirect.operation, indirect.sector, segments, disk)

    def _parse_indirect(self, slot: bytes) -> Indirect | Refusal:
        _, operation, count, ident, sector, _handle, *grefs = self.indirect.unpack(slot)
        if operation not in (OP_READ, OP_WRITE):
            reason = f"an indirect request of operation {operation}"
            return Refusal(ident, operation, RSP_ERROR, reason)
        if not 0 < count <= MAX_INDIRECT_SEGMENTS:
            return Refusal(ident, operation, RSP_ERROR, f"{count} indirect segments")
        pages = -(-count // SEGMENTS_PER_PAGE)
        return Indirect(ident, operation, sector, count, tuple(grefs[:pages]))

    def _parse_discard(self, slot: bytes, disk: Disk) -> Request | Refusal:
        operation, flag, _handle, ident, sector, sectors = self.discard.unpack(slot)
        if not disk.discard:
            return Refusal(ident, operation, RSP_EOPNOTSUPP, "DISCARD was not offered")
        if flag & DISCARD_SECURE and not disk.secure_discard:
            # blkback discards without erasing; the guest would believe its data destroyed.
            return Refusal(ident, operation, RSP_EOPNOTSUPP, "discard-secure was not offered")
        if sectors == 0:
            return Refusal(ident, operation, RSP_ERROR, "a discard of no sectors")
        scale = disk.unit >> SECTOR_SHIFT
        return _placed(ident, operation, sector * scale, sectors * scale, (), disk)

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

    def pack_discard(self, ident: int, sector: int, sectors: int, flag: int = 0) -> bytes:
        """A frontend's slot of a DISCARD."""
        slot = self.discard.pack(OP_DISCARD, flag, 0, ident, sector, sectors)
        return slot.ljust(self.layout.request_size, b"\0")

    def pack_indirect(
        self, operation: int, ident: int, sector: int, nr_segments: int, grefs: Sequence[int]
    ) -> bytes:
        """A frontend's slot of an indirect request.

        Args:
            grefs: the pages that hold its segments (`pack_segments`); at most 8.
        """
        padded = [*grefs, *[0] * (MAX_INDIRECT_PAGES - len(grefs))]
        slot = self.indirect.pack(OP_INDIRECT, operation, nr_segments, ident, sector, 0, *padded)
        return slot.ljust(self.layout.request_size, b"\0")

    def pack_segments(self, segments: Sequence[tuple[int, int, int]]) -> bytes:
        """What a frontend writes into the pages of an indirect request."""
        return b"".join(self.segment.pack(*segment) for segment in segments)

    def unpack_response(self, slot: bytes) -> tuple[int, int, int]:
        """A frontend's view of a response: id, operation, status."""
        ident, operation, status = self.reply.unpack(slot)
        return ident, operation, status


def _checked(
    ident: int, operation: int, sector: int, segments: Sequence[Segment], disk: Disk
) -> Request | Refusal:
    """Check the segments, sum them up, and see where they lie."""
    if disk.unit != SECTOR_SIZE:
        scale = disk.unit >> SECTOR_SHIFT
        sector *= scale
        segments = [(gref, first * scale, (last + 1) * scale - 1) for gref, first, last in segments]
    sectors = 0
    for _, first, last in segments:
        if first > last or last > LAST_SECTOR_OF_PAGE:
            reason = f"a segment of sectors {first} to {last} of a page"
            return Refusal(ident, operation, RSP_ERROR, reason)
        sectors += last - first + 1
    return _placed(ident, operation, sector, sectors, segments, disk)


def _placed(
    ident: int, operation: int, sector: int, sectors: int, segments: Sequence[Segment], disk: Disk
) -> Request | Refusal:
    """See where a request lies, and whether it may change what is there."""
    # Python's integers do not wrap, so that 2^64 needs no case of its own.
    if sectors and sector + sectors > disk.sectors:
        reason = f"{sectors} sectors at {sector} of a disk of {disk.sectors}"
    elif sectors and (sector | sectors) & ((disk.sector_size >> SECTOR_SHIFT) - 1):
        reason = f"{sectors} sectors at {sector} are no whole ones of {disk.sector_size} bytes"
    elif disk.readonly and sectors and operation != OP_READ:
        reason = "a write to a read-only disk"
    else:
        return Request(ident, operation, sector, sectors, segments)
    return Refusal(ident, operation, RSP_ERROR, reason)


ABI_X86_32: Final = Abi("x86_32-abi", CAbi.X86_32)
ABI_X86_64: Final = Abi("x86_64-abi", CAbi.X86_64)
ABI_NATIVE: Final = ABI_X86_32 if CAbi.native() is CAbi.X86_32 else ABI_X86_64
"""What a frontend that names no protocol speaks: the backend's own ABI."""

ABI_ARM: Final = Abi("arm-abi", CAbi.X86_64)
"""Both ARMs'; it is what their Linux writes."""

ABIS: Final = {abi.name: abi for abi in (ABI_X86_32, ABI_X86_64, ABI_ARM)} | {"native": ABI_NATIVE}
"""By `protocol` string (io/protocols.h)."""
