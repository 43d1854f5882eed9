# SPDX-License-Identifier: MIT
"""What a frontend counts in on a disk whose sectors are larger than 512 bytes.

Until Xen 4.20 blkif.h said `sector-size` (67e1c050e36b), and Linux counted 512 bytes all the
same; since then it says 512.  QEMU 7.2 and Windows' frontend count `sector-size`, and go by
`feature-large-sector-size`, which nobody is to do any more.  A backend that
takes one for the other writes to wrong places.  So nothing is guessed: where a frontend
says that it may count otherwise, somebody has to tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from xenpy.backend import DeviceError
from xenpy.drivers.block.protocol import SECTOR_SIZE
from xenpy.peer_keys import flag

__all__ = ["SectorUnit", "parse_sector_unit", "unit_of"]


class SectorUnit(Enum):
    """What sector numbers count."""

    BYTES_512 = "512"
    SECTOR_SIZE = "sector-size"


def parse_sector_unit(text: str) -> SectorUnit | None:
    """None if nothing is said.  Raises ValueError: it makes no sense."""
    if not text:
        return None
    try:
        return SectorUnit(text)
    except ValueError:
        raise ValueError(f"sector-unit is {text!r}; give 512 or sector-size") from None


def unit_of(wanted: SectorUnit | None, frontend: Mapping[str, str], sector_size: int) -> int:
    """What to count in, in bytes.

    Args:
        wanted: what the operator said.
        frontend: the keys that the frontend published.
        sector_size: the disk's.

    Raises:
        DeviceError: it cannot be known.
        PeerError: the frontend's key is no number.
    """
    if sector_size == SECTOR_SIZE or wanted is SectorUnit.BYTES_512:
        return SECTOR_SIZE
    if wanted is SectorUnit.SECTOR_SIZE:
        return sector_size
    if flag(frontend, "feature-large-sector-size"):
        raise DeviceError(
            f"the frontend may count in sectors of {sector_size} bytes or of 512, as its "
            "feature-large-sector-size says: tell which with sector-unit=sector-size or =512"
        )
    return SECTOR_SIZE
