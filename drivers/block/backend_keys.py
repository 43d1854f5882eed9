# SPDX-License-Identifier: MIT
"""The keys that a blkif backend publishes, checked by a frontend.  Pure.

Everything here is hostile input: a value may be any text, a key may be missing.  What a
backend offers beyond what we would use is no fault of its; what is no number is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from xenpy.drivers.block.protocol import (
    MAX_SEGMENTS,
    SECTOR_SHIFT,
    SECTOR_SIZE,
    VDISK_CDROM,
    VDISK_READONLY,
    VDISK_REMOVABLE,
)
from xenpy.errors import PeerError
from xenpy.peer_keys import flag, number
from xenpy.types import PAGE_SIZE

__all__ = ["DiskKeys", "TransportOffer"]

MAX_BYTES: Final = 2**63 - 1
"""The largest off_t: what is larger is no disk."""
OTHER_READING: Final = "qdisk"
"""An older QEMU counts sectors in units of `sector-size`, as blkif.h said until Xen 4.20."""


@dataclass(frozen=True, slots=True)
class TransportOffer:
    """What rings the backend can serve; known in InitWait.

    Attributes:
        ring_page_order: the largest.
        queues: how many at most.
    """

    ring_page_order: int
    queues: int

    @classmethod
    def parse(cls, keys: Mapping[str, str]) -> TransportOffer:
        """Raises PeerError: a key is no number."""
        queues = number(keys, "multi-queue-max-queues", 1)
        if queues == 0:
            raise PeerError("multi-queue-max-queues is 0")
        return cls(number(keys, "max-ring-page-order", 0), queues)


@dataclass(frozen=True, slots=True)
class DiskKeys:
    """The disk and what can be asked of it; known once the backend is Connected.

    Attributes:
        sectors: the size in units of 512 bytes, whatever `sector_size` is.
        sector_size: what offset and length of a request must be multiples of, in bytes.
        physical_sector_size: what the store writes in one piece, in bytes: a hint.
        cdrom, removable, readonly: the bits of `info`.
        persistent: the backend keeps pages mapped between requests.
        flush, barrier, discard, secure_discard: operations that it knows.
        discard_granularity, discard_alignment: bytes: hints.
        max_segments: of a READ or WRITE; above 11 by an indirect request.
    """

    sectors: int
    sector_size: int
    physical_sector_size: int
    cdrom: bool
    removable: bool
    readonly: bool
    persistent: bool
    flush: bool
    barrier: bool
    discard: bool
    secure_discard: bool
    discard_granularity: int
    discard_alignment: int
    max_segments: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.sectors << SECTOR_SHIFT

    @classmethod
    def parse(cls, keys: Mapping[str, str], kind: str) -> DiskKeys:
        """Check a snapshot of the backend's directory.

        Args:
            kind: the directory's name below `backend/`.

        Raises:
            PeerError: a key is missing or is not what blkif.h says; or it cannot be told
                which sectors the backend would read.
        """
        sectors = number(keys, "sectors", bits=64)
        if sectors > MAX_BYTES >> SECTOR_SHIFT:
            raise PeerError(f"a disk of {sectors} sectors")
        size = number(keys, "sector-size", SECTOR_SIZE)
        if size < SECTOR_SIZE or size > PAGE_SIZE or size & (size - 1):
            raise PeerError(f"sector-size is {size}, no power of two from 512 to {PAGE_SIZE}")
        if size != SECTOR_SIZE and kind == OTHER_READING:
            raise PeerError(
                f"sector-size is {size}: which unit a {kind} counts sectors in depends on "
                "QEMU's version, so that a write could land anywhere"
            )
        info = number(keys, "info", 0)
        discard = flag(keys, "feature-discard")
        return cls(
            sectors=sectors - sectors % (size >> SECTOR_SHIFT),
            sector_size=size,
            physical_sector_size=number(keys, "physical-sector-size", size),
            cdrom=bool(info & VDISK_CDROM),
            removable=bool(info & VDISK_REMOVABLE),
            readonly=bool(info & VDISK_READONLY),
            persistent=flag(keys, "feature-persistent"),
            flush=flag(keys, "feature-flush-cache"),
            barrier=flag(keys, "feature-barrier"),
            discard=discard,
            secure_discard=discard and flag(keys, "discard-secure"),
            discard_granularity=number(keys, "discard-granularity", size),
            discard_alignment=number(keys, "discard-alignment", 0),
            max_segments=max(MAX_SEGMENTS, number(keys, "feature-max-indirect-segments", 0)),
        )
