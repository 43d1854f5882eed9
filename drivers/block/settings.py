# SPDX-License-Identifier: MIT
"""What the operator gave `xenpy serve block`, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from xenpy.drivers.block.filters.base import FilterMaker
from xenpy.drivers.block.filters.chain import parse_filters
from xenpy.drivers.block.frontend_keys import MAX_QUEUES
from xenpy.drivers.block.lane import TIERS
from xenpy.drivers.block.sector_unit import SectorUnit, parse_sector_unit

__all__ = ["OPTIONS", "Settings"]

DEFAULT_QUEUES: Final = min(4, os.cpu_count() or 1)

OPTIONS: Final[Mapping[str, str]] = {
    "force": "1: serve an image although it is open for writing elsewhere",
    "direct": "1: go past the page cache (O_DIRECT) where the image's file system can",
    "python": "1: allow targets and filters in python, which run with all the daemon's rights",
    "tier": "worker (an engine in C, in a process for each queue), native (the same within the "
    "daemon), callback (the engine in C, the store in Python), batch (all in Python), or auto: a "
    "worker if the store can be served by one, else callback",
    "sector-unit": "512 or sector-size: what guests count in on disks whose sectors are larger",
    "queues": f"1 to {MAX_QUEUES}: queues that a guest may use ({DEFAULT_QUEUES})",
    "filter": "filters of every disk that has none of its own, as --filter gives them",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """For every disk of the daemon.

    Attributes:
        force, direct, python, tier, queues, sector_unit: see `OPTIONS`.
        filters: of disks that name none; the first is next to the guest.
    """

    force: bool = False
    direct: bool = False
    python: bool = False
    tier: str = TIERS[0]
    sector_unit: SectorUnit | None = None
    queues: int = DEFAULT_QUEUES
    filters: tuple[FilterMaker, ...] = ()

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Settings:
        """Raises ValueError: a value makes no sense."""
        return cls(
            force=_flag(options, "force"),
            direct=_flag(options, "direct"),
            python=_flag(options, "python"),
            tier=_tier(options),
            sector_unit=parse_sector_unit(options.get("sector-unit", "")),
            queues=_queues(options),
            filters=parse_filters(options.get("filter", "")),
        )


def _tier(options: Mapping[str, str]) -> str:
    value = options.get("tier", TIERS[0])
    if value not in TIERS:
        raise ValueError(f"tier is {value!r}; give {', '.join(TIERS)}")
    return value


def _queues(options: Mapping[str, str]) -> int:
    value = options.get("queues", str(DEFAULT_QUEUES))
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= MAX_QUEUES:
        raise ValueError(f"queues is {value!r}; give 1 to {MAX_QUEUES}")
    return int(value)


def _flag(options: Mapping[str, str], name: str) -> bool:
    value = options.get(name, "0")
    if value not in ("0", "1"):
        raise ValueError(f"{name} is {value!r}; give 0 or 1")
    return value == "1"
