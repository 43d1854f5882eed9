# SPDX-License-Identifier: MIT
"""Disks whose sectors are larger than 512 bytes, in both readings of blkif.h; and discards that
erase: goes with `block_suite`, whose fixtures it uses."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from conformance.block_front import Blkfront, BlockEnvironment, Daemon, Served, Witness, connected
from conformance.block_suite import CONTENT, DISK_SECTORS
from xenpy.backend import DeviceError
from xenpy.drivers.block import image as images
from xenpy.drivers.block.protocol import (
    DISCARD_SECURE,
    OP_FLUSH_DISKCACHE,
    OP_READ,
    OP_WRITE,
    RSP_EOPNOTSUPP,
    RSP_ERROR,
    RSP_OKAY,
)
from xenpy.drivers.block.stores.file import FileStore
from xenpy.types import PAGE_SIZE

LARGE = 4096
OTHER_READING = {"sector-unit": "sector-size"}


class LargeSectors(FileStore):
    """As a device of 4096-byte sectors."""

    def __init__(self, fd: int, *, readonly: bool, direct: bool = False) -> None:
        super().__init__(fd, readonly=readonly, direct=direct)
        self.sector_size = LARGE


@pytest.fixture
def large(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, tmp_path: Path, tier: str,
    request: pytest.FixtureRequest,
) -> Iterator[Served]:  # fmt: skip
    """A disk of large sectors; its backend's keys are the test's parameter, if it has one."""
    path = tmp_path / "large.img"
    path.write_bytes(CONTENT + bytes(3 * 512))
    keys: dict[str, str] = getattr(request, "param", {})
    with patch.object(images, "FileStore", LargeSectors):
        served = Served(daemon, env, path, devid=51712, tier=tier, backend_keys=keys)
    yield served
    served.close()
    witness.check()


@pytest.fixture
def its_front(env: BlockEnvironment, large: Served) -> Iterator[Blkfront]:
    front = Blkfront(env, persistent=False, table_pages=1)
    yield front
    large.disconnect()
    front.close()


def test_a_request_is_of_whole_sectors(large: Served, its_front: Blkfront) -> None:
    front = its_front
    half = [(front.refs[0], 0, 3)]
    with connected(front, large) as keys:
        # Counted in 512 bytes; the rest of a sector is not served.
        assert (keys["sectors"], keys["sector-size"]) == (DISK_SECTORS, LARGE)
        assert front.read(8, 1) == CONTENT[LARGE : 2 * LARGE]
        for operation in (OP_READ, OP_WRITE, OP_FLUSH_DISKCACHE):
            for sector in (1, 4, 7):
                assert front.status(operation, sector, front.whole_pages(1)) == RSP_ERROR
            assert front.status(operation, 8, half) == RSP_ERROR
        # What is in one sector may be in several segments.
        split = [(front.refs[0], 0, 3), (front.refs[1], 4, 7)]
        assert front.status(OP_READ, 8, split) == RSP_OKAY
        for operation in (OP_READ, OP_WRITE):
            assert front.indirect_status(operation, 4, front.whole_pages(2)) == RSP_ERROR
            assert front.indirect_status(operation, 8, [*split, *half]) == RSP_ERROR
        assert front.indirect_status(OP_READ, 8, split) == RSP_OKAY
        assert front.discard_sectors(4, 8) == RSP_ERROR
        assert front.discard_sectors(8, 4) == RSP_ERROR
        assert front.status(OP_FLUSH_DISKCACHE, 3, []) == RSP_OKAY
    assert large.image.read_bytes() == CONTENT + bytes(3 * 512)


@pytest.mark.parametrize("large", [OTHER_READING], indirect=True)
def test_a_frontend_that_counts_in_sector_size(large: Served, its_front: Blkfront) -> None:
    """As blkif.h had it until Xen 4.20, and as Windows' frontend does."""
    front, page = its_front, random.Random(2).randbytes(PAGE_SIZE)
    whole = [(front.refs[0], 0, 0)]
    with connected(front, large) as keys:
        assert (keys["sectors"], keys["sector-size"]) == (DISK_SECTORS // 8, LARGE)
        front.poke(0, page)
        assert front.status(OP_WRITE, 2, whole) == RSP_OKAY
        front.poke(0, bytes(PAGE_SIZE))
        assert front.indirect_status(OP_READ, 2, whole) == RSP_OKAY
        assert front.peek(0, PAGE_SIZE) == page
        assert front.discard_sectors(3, 1) == RSP_OKAY
        last = DISK_SECTORS // 8 - 1
        assert front.status(OP_READ, last, whole) == RSP_OKAY
        assert front.status(OP_READ, last + 1, whole) == RSP_ERROR
        # A page has one sector.
        assert front.status(OP_READ, 0, [(front.refs[0], 0, 7)]) == RSP_ERROR
        os.truncate(large.image, 10 * LARGE + 512)
        assert large.daemon.run(large.device.refresh()) == {"sectors": 10}
        assert front.status(OP_READ, 9, whole) == RSP_OKAY
        assert front.status(OP_READ, 10, whole) == RSP_ERROR
    expected = bytearray(CONTENT[: 10 * LARGE + 512])
    expected[2 * LARGE : 3 * LARGE] = page
    expected[3 * LARGE : 4 * LARGE] = bytes(LARGE)
    assert large.image.read_bytes() == expected


def test_a_frontend_whose_unit_is_not_known_is_refused(large: Served, its_front: Blkfront) -> None:
    """To guess wrong would be to write to wrong places."""
    keys = {**its_front.keys(), "feature-large-sector-size": "1"}
    with pytest.raises(DeviceError, match="tell which with sector-unit"):
        large.connect(keys)


@pytest.mark.parametrize("large", [{"sector-unit": "512"}], indirect=True)
def test_who_says_the_unit_is_believed(large: Served, its_front: Blkfront) -> None:
    keys = {**its_front.keys(), "feature-large-sector-size": "1"}
    assert large.connect(keys)["sectors"] == DISK_SECTORS
    assert its_front.read(8, 1) == CONTENT[LARGE : 2 * LARGE]


def test_on_small_sectors_there_is_one_reading(served: Served, front: Blkfront) -> None:
    assert served.connect({**front.keys(), "feature-large-sector-size": "1"})["sector-size"] == 512


def test_a_secure_discard_is_offered_where_it_erases(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, tier: str
) -> None:
    served = Served(daemon, env, Path("memory:1M"), devid=51712, tier=tier)
    assert served.features["discard-secure"] == 1
    front = Blkfront(env)
    try:
        with connected(front, served):
            front.write(8, b"s" * PAGE_SIZE)
            assert front.discard_sectors(8, 8, DISCARD_SECURE) == RSP_OKAY
            assert front.read(8, 1) == bytes(PAGE_SIZE)
            assert front.discard_sectors(2047, 2, DISCARD_SECURE) == RSP_ERROR
    finally:
        served.close()
        front.close()


def test_a_secure_discard_of_a_file_is_not_offered(served: Served, front: Blkfront) -> None:
    assert served.features["discard-secure"] == 0
    with connected(front, served):
        assert front.discard_sectors(8, 8, DISCARD_SECURE) == RSP_EOPNOTSUPP
    assert served.image.read_bytes() == CONTENT
