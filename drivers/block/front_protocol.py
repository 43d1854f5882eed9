# SPDX-License-Identifier: MIT
"""How a blkif frontend cuts a transfer into requests, sans-IO.

Sectors count 512 bytes whatever `sector-size` is, as Linux has always had it and blkif.h has
since Xen 4.20.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from xenpy.drivers.block.protocol import (
    MAX_INDIRECT_PAGES,
    MAX_SEGMENTS,
    SECTOR_SHIFT,
    SEGMENTS_PER_PAGE,
    Segment,
)
from xenpy.types import PAGE_SIZE, GrantRef

__all__ = ["MOST_SEGMENTS", "Piece", "indirect_pages", "pieces", "segments"]

MOST_SEGMENTS: Final = MAX_INDIRECT_PAGES * SEGMENTS_PER_PAGE
"""That blkif.h has room for in one request."""
_SECTORS_PER_PAGE: Final = PAGE_SIZE >> SECTOR_SHIFT


class Piece(NamedTuple):
    """A part of a transfer that one request carries: `length` bytes at `offset` of the disk,
    `start` bytes into the transfer."""

    offset: int
    length: int
    start: int


def pieces(offset: int, length: int, most: int) -> Iterator[Piece]:
    """Cut a transfer into requests of at most `most` bytes."""
    for start in range(0, length, most):
        yield Piece(offset + start, min(most, length - start), start)


def segments(refs: Sequence[GrantRef], length: int) -> list[Segment]:
    """The pages behind `refs` filled from their beginning with `length` bytes, whole sectors
    of 512: every page but the last is whole."""
    sectors = length >> SECTOR_SHIFT
    return [
        (ref, 0, min(_SECTORS_PER_PAGE, sectors - page * _SECTORS_PER_PAGE) - 1)
        for page, ref in enumerate(refs)
    ]


def indirect_pages(nr_segments: int) -> int:
    """How many pages a request's segments need beside the ring: none up to 11."""
    return 0 if nr_segments <= MAX_SEGMENTS else -(-nr_segments // SEGMENTS_PER_PAGE)
