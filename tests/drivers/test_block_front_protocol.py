# SPDX-License-Identifier: MIT
"""What a blkif frontend writes and reads, sans-IO: codecs by hypothesis, keys by table."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.drivers.block.backend_keys import DiskKeys, TransportOffer
from xenpy.drivers.block.front_link import TRANSPORT_KEYS, Wishes
from xenpy.drivers.block.front_protocol import MOST_SEGMENTS, indirect_pages, pieces, segments
from xenpy.drivers.block.protocol import ABI_NATIVE, OP_READ, OP_WRITE, SEGMENTS_PER_PAGE
from xenpy.errors import PeerError
from xenpy.types import PAGE_SIZE, GrantRef

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
SLOT = ABI_NATIVE.layout.request_size
SECTORS = st.integers(1, 4096)


@given(U64, SECTORS, SECTORS)
def test_pieces_are_the_transfer(offset: int, length: int, most: int) -> None:
    cut = list(pieces(offset, length * 512, most * 512))
    assert [piece.start for piece in cut] == list(range(0, length * 512, most * 512))
    assert all(piece.offset == offset + piece.start for piece in cut)
    assert sum(piece.length for piece in cut) == length * 512
    assert {piece.length for piece in cut[:-1]} <= {most * 512}


def test_a_transfer_of_nothing_has_no_pieces() -> None:
    assert list(pieces(512, 0, 4096)) == []


@given(SECTORS)
def test_segments_are_whole_pages_but_the_last(sectors: int) -> None:
    refs = [GrantRef(number + 8) for number in range(-(-sectors // 8))]
    parts = segments(refs, sectors * 512)
    assert [gref for gref, _, _ in parts] == refs
    assert all((first, last) == (0, 7) for _, first, last in parts[:-1])
    assert sum(last - first + 1 for _, first, last in parts) == sectors


@given(st.sampled_from([OP_READ, OP_WRITE]), U64, U64, U16, st.lists(U32, max_size=8))
def test_an_indirect_request(
    operation: int, ident: int, sector: int, count: int, refs: list[int]
) -> None:
    slot = ABI_NATIVE.pack_indirect(operation, ident, sector, count, refs)
    assert len(slot) == SLOT
    assert struct.unpack_from("<BBHxxxxQQHxx8I", slot) == (
        6, operation, count, ident, sector, 0, *refs, *[0] * (8 - len(refs)),
    )  # fmt: skip
    assert not any(slot[60:])
    assert (slot[4:8], slot[26:28]) == (bytes(4), bytes(2))


@given(U64, U64, U64, st.booleans())
def test_a_discard(ident: int, sector: int, sectors: int, secure: bool) -> None:
    slot = ABI_NATIVE.pack_discard(ident, sector, sectors, int(secure))
    assert len(slot) == SLOT
    assert struct.unpack_from("<BBHxxxxQQQ", slot) == (5, secure, 0, ident, sector, sectors)
    assert not any(slot[32:])


@given(SECTORS)
def test_a_table_of_segments(sectors: int) -> None:
    parts = segments([GrantRef(number) for number in range(-(-sectors // 8))], sectors * 512)
    table = ABI_NATIVE.pack_segments(parts)
    assert [tuple(found) for found in struct.iter_unpack("<IBBxx", table)] == parts
    assert len(table) <= PAGE_SIZE


@pytest.mark.parametrize(
    ("count", "pages"), [(1, 0), (11, 0), (12, 1), (512, 1), (513, 2), (4096, 8)]
)
def test_more_than_eleven_segments_lie_in_pages_of_their_own(count: int, pages: int) -> None:
    assert indirect_pages(count) == pages
    assert (SEGMENTS_PER_PAGE, MOST_SEGMENTS) == (512, 4096)


# ------------------------------------------------------------------ what is asked for


@given(
    st.integers(11, 4096),
    st.integers(11, 4096),
    st.integers(0, 2**32 - 1).map(lambda n: max(11, n)),
)
def test_a_request_always_finds_room(data_pages: int, wanted: int, offered: int) -> None:
    most = Wishes(data_pages=data_pages, max_segments=wanted).most_segments(offered)
    assert 11 <= most <= min(wanted, offered)
    assert most + indirect_pages(most) <= data_pages


@pytest.mark.parametrize(
    "wrong",
    [
        {"queues": 0}, {"queues": 17}, {"ring_page_order": 5}, {"ring_page_order": -1},
        {"data_pages": 10}, {"max_segments": 10}, {"max_segments": 4097},
    ],
    ids=str,
)  # fmt: skip
def test_a_wish_beyond_the_protocol_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Wishes(**wrong)


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("ring-ref", True), ("ring-ref15", True), ("queue-0", True), ("event-channel", True),
        ("multi-queue-num-queues", True), ("protocol", True), ("num-ring-pages", True),
        ("backend", False), ("backend-id", False), ("virtual-device", False), ("state", False),
        ("device-type", False), ("trusted", False), ("ring-ref-x", False),
    ],
)  # fmt: skip
def test_a_connection_s_keys_are_told_from_the_toolstack_s(key: str, ours: bool) -> None:
    assert bool(TRANSPORT_KEYS.fullmatch(key)) == ours


# ------------------------------------------------------------------ what is offered


def test_the_least_that_a_backend_says() -> None:
    assert TransportOffer.parse({}) == TransportOffer(ring_page_order=0, queues=1)
    disk = DiskKeys.parse({"sectors": "8"}, "vbd")
    assert (disk.size, disk.sector_size, disk.physical_sector_size) == (4096, 512, 512)
    assert (disk.max_segments, disk.discard_granularity, disk.discard_alignment) == (11, 512, 0)
    flags = (disk.flush, disk.barrier, disk.discard, disk.secure_discard, disk.persistent)
    assert flags == (False,) * 5
    assert (disk.cdrom, disk.removable, disk.readonly) == (False,) * 3


def test_bits_of_info() -> None:
    disk = DiskKeys.parse({"sectors": "8", "info": "4294967295"}, "vbd")
    assert (disk.cdrom, disk.removable, disk.readonly) == (True,) * 3


def test_a_secure_discard_needs_a_discard() -> None:
    assert not DiskKeys.parse({"sectors": "8", "discard-secure": "1"}, "vbd").secure_discard


def test_a_rest_of_a_large_sector_is_left_out() -> None:
    assert DiskKeys.parse({"sectors": "15", "sector-size": "4096"}, "vbd").size == 4096


def test_a_qdisk_of_large_sectors_is_refused() -> None:
    """One QEMU would read sector 8 where another reads sector 64."""
    keys = {"sectors": "8", "sector-size": "4096"}
    with pytest.raises(PeerError, match="which unit a qdisk counts sectors in"):
        DiskKeys.parse(keys, "qdisk")
    assert DiskKeys.parse({"sectors": "8", "sector-size": "512"}, "qdisk").size == 4096


@given(st.dictionaries(st.sampled_from([
    "sectors", "sector-size", "physical-sector-size", "info", "feature-persistent",
    "feature-flush-cache", "feature-barrier", "feature-discard", "discard-secure",
    "discard-granularity", "discard-alignment", "feature-max-indirect-segments",
    "max-ring-page-order", "multi-queue-max-queues",
]), st.one_of(st.text(max_size=30), st.integers(-9, 2**70).map(str), st.just("1"))))  # fmt: skip
def test_whatever_a_backend_writes_is_a_disk_or_a_peer_error(keys: dict[str, str]) -> None:
    for parse in (TransportOffer.parse, lambda keys: DiskKeys.parse(keys, "vbd")):
        try:
            found = parse(keys)
        except PeerError:
            continue
        if isinstance(found, DiskKeys):
            assert 0 <= found.size <= 2**63 - 1
            assert found.size % found.sector_size == 0
            assert 512 <= found.sector_size <= PAGE_SIZE
            assert found.max_segments >= 11
        else:
            assert found.queues >= 1
