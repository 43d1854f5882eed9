# SPDX-License-Identifier: MIT
"""What a frontend counts in on larger sectors: never guessed where it matters."""

from __future__ import annotations

import pytest

from xenpy.backend import DeviceError
from xenpy.drivers.block.driver import DRIVER
from xenpy.drivers.block.sector_unit import SectorUnit, parse_sector_unit, unit_of
from xenpy.drivers.block.settings import Settings
from xenpy.errors import PeerError

EITHER = {"feature-large-sector-size": "1"}


@pytest.mark.parametrize("wanted", [None, *SectorUnit])
@pytest.mark.parametrize("frontend", [{}, EITHER], ids=["silent", "either"])
def test_sectors_of_512_bytes_have_one_unit(
    wanted: SectorUnit | None, frontend: dict[str, str]
) -> None:
    assert unit_of(wanted, frontend, 512) == 512


def test_larger_ones_have_two() -> None:
    assert unit_of(None, {}, 4096) == 512
    for frontend in ({}, EITHER):
        assert unit_of(SectorUnit.BYTES_512, frontend, 4096) == 512
        assert unit_of(SectorUnit.SECTOR_SIZE, frontend, 4096) == 4096
    with pytest.raises(DeviceError, match="sectors of 4096 bytes or of 512"):
        unit_of(None, EITHER, 4096)
    with pytest.raises(PeerError):
        unit_of(None, {"feature-large-sector-size": "x"}, 4096)


def test_the_words() -> None:
    assert parse_sector_unit("") is None
    assert Settings.parse({"sector-unit": "sector-size"}).sector_unit is SectorUnit.SECTOR_SIZE
    words = {"vdev": "xvda", "target": "/x", "sector-unit": "512"}
    assert DRIVER.plan(words, "vbd3").backend_keys["sector-unit"] == "512"
    for text in ("4096", "512 ", "sector_size"):
        with pytest.raises(ValueError, match="give 512 or sector-size"):
            parse_sector_unit(text)
        with pytest.raises(ValueError, match="give 512 or sector-size"):
            DRIVER.plan({**words, "sector-unit": text}, "vbd3")
