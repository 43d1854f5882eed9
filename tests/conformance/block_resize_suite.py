# SPDX-License-Identifier: MIT
"""A disk whose image changes its size under it: goes with `block_suite`, whose fixtures it
uses."""

from __future__ import annotations

import os

import pytest

from conformance.block_front import Blkfront, Served, Witness, connected
from conformance.block_suite import CONTENT, DISK_SECTORS
from xenpy.backend import DeviceError, Keys
from xenpy.drivers.block.protocol import OP_READ, OP_WRITE, RSP_ERROR, RSP_OKAY
from xenpy.types import PAGE_SIZE


def resize(served: Served, sectors: int) -> Keys:
    os.truncate(served.image, sectors * 512)
    return served.daemon.run(served.device.refresh())


def test_a_disk_grows_while_it_is_used(served: Served, front: Blkfront) -> None:
    page = front.whole_pages(1)
    with connected(front, served):
        assert front.status(OP_WRITE, DISK_SECTORS, page) == RSP_ERROR
        assert resize(served, DISK_SECTORS + 100) == {"sectors": DISK_SECTORS + 100}
        front.write(DISK_SECTORS, b"x" * PAGE_SIZE)
        assert front.read(DISK_SECTORS, 1) == b"x" * PAGE_SIZE
        assert front.status(OP_READ, DISK_SECTORS + 93, page) == RSP_ERROR
        assert front.discard_sectors(DISK_SECTORS, 100) == RSP_OKAY
        assert front.discard_sectors(DISK_SECTORS, 101) == RSP_ERROR
    assert served.image.read_bytes() == CONTENT + bytes(100 * 512)


def test_a_disk_shrinks_while_it_is_used(served: Served, front: Blkfront) -> None:
    """What was within it is answered with an error, and makes the image no longer."""
    page = front.whole_pages(1)
    with connected(front, served):
        assert front.status(OP_READ, 1024, page) == RSP_OKAY
        assert resize(served, 1000) == {"sectors": 1000}
        for operation in (OP_READ, OP_WRITE):
            for sector in (993, 1000, 1024, DISK_SECTORS - 8):
                assert front.status(operation, sector, page) == RSP_ERROR
        assert front.status(OP_READ, 992, page) == RSP_OKAY
    assert served.image.read_bytes() == CONTENT[: 1000 * 512]


def test_a_size_that_changed_between_two_connections(served: Served, front: Blkfront) -> None:
    with connected(front, served) as keys:
        assert keys["sectors"] == DISK_SECTORS
    assert resize(served, 3000) == {"sectors": 3000}
    with connected(front, served) as keys:
        assert keys["sectors"] == 3000
        assert front.status(OP_READ, 2992, front.whole_pages(1)) == RSP_OKAY


def test_a_rest_of_a_sector_is_not_served(served: Served, front: Blkfront) -> None:
    with connected(front, served):
        os.truncate(served.image, 600 * 512 + 511)
        assert served.daemon.run(served.device.refresh()) == {"sectors": 600}


def test_an_image_that_has_become_empty_is_no_disk(
    served: Served, witness: Witness, front: Blkfront
) -> None:
    with connected(front, served):
        with pytest.raises(DeviceError, match="empty"):
            resize(served, 0)
        # As before, as far as the image goes.
        assert front.status(OP_READ, 0, front.whole_pages(1)) == RSP_ERROR
        assert resize(served, 8) == {"sectors": 8}
        assert front.read(0, 1) == bytes(PAGE_SIZE)
        witness.check()
