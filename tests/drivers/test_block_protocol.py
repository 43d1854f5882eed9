# SPDX-License-Identifier: MIT
"""blkif's slots and keys: layouts of the three ABIs, and nothing unchecked gets through."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.drivers.block.frontend_keys import FrontendKeys
from xenpy.drivers.block.protocol import (
    ABI_NATIVE,
    ABI_X86_32,
    ABI_X86_64,
    ABIS,
    MAX_SEGMENTS,
    OP_DISCARD,
    OP_FLUSH_DISKCACHE,
    OP_INDIRECT,
    OP_READ,
    OP_WRITE,
    OP_WRITE_BARRIER,
    RSP_EOPNOTSUPP,
    RSP_ERROR,
    RSP_OKAY,
    Abi,
    Disk,
    Refusal,
    Request,
    Segment,
)
from xenpy.errors import PeerError

DISK = Disk(sectors=1000, readonly=False)
READ_ONLY = Disk(sectors=1000, readonly=True)
WHOLE_PAGE = (9, 0, 7)

abis = pytest.mark.parametrize("abi", [ABI_X86_32, ABI_X86_64], ids=lambda abi: abi.name)


def refusal(abi: Abi, slot: bytes, disk: Disk = DISK) -> Refusal:
    result = abi.parse(slot, disk)
    assert isinstance(result, Refusal)
    return result


def test_sizes_and_offsets_as_blkif_h_has_them() -> None:
    assert (ABI_X86_64.layout.request_size, ABI_X86_64.layout.response_size) == (112, 16)
    assert (ABI_X86_32.layout.request_size, ABI_X86_32.layout.response_size) == (108, 12)
    slot = ABI_X86_64.pack_request(1, 0x1122334455667788, 0x99, [(5, 1, 2)])
    assert struct.unpack_from("<BB", slot) == (1, 1)
    assert struct.unpack_from("<QQIBB", slot, 8) == (0x1122334455667788, 0x99, 5, 1, 2)
    slot = ABI_X86_32.pack_request(1, 0x1122334455667788, 0x99, [(5, 1, 2)])
    assert struct.unpack_from("<QQIBB", slot, 4) == (0x1122334455667788, 0x99, 5, 1, 2)


def test_native_is_this_machine_s_abi() -> None:
    assert ABIS["native"] is ABI_NATIVE
    assert ABI_NATIVE is ABI_X86_64


@abis
def test_a_good_request_comes_out_as_it_went_in(abi: Abi) -> None:
    slot = abi.pack_request(OP_WRITE, 2**64 - 1, 990, [(9, 0, 7), (2**32 - 1, 3, 4)])
    expected = Request(2**64 - 1, OP_WRITE, 990, 10, [Segment(9, 0, 7), Segment(2**32 - 1, 3, 4)])
    assert abi.parse(slot, DISK) == expected


@abis
def test_what_is_not_used_of_a_response_is_zero(abi: Abi) -> None:
    """XSA-216: all 64 bits of id, 8 of operation, 16 of status; everything else zero."""
    slot = abi.response(2**64 - 1, 255, RSP_ERROR)
    used = bytes([255] * 9 + [0] + [255] * 2)
    assert slot == used.ljust(abi.layout.response_size, b"\0")
    assert abi.unpack_response(slot) == (2**64 - 1, 255, RSP_ERROR)
    assert abi.unpack_response(abi.response(7, 0, RSP_OKAY)) == (7, 0, RSP_OKAY)


@abis
@pytest.mark.parametrize("operation", [OP_READ, OP_WRITE])
@pytest.mark.parametrize("count", [0, 12, 255])
def test_segment_counts(abi: Abi, operation: int, count: int) -> None:
    slot = abi.pack_request(operation, 1, 0, [WHOLE_PAGE] * MAX_SEGMENTS, nr_segments=count)
    assert refusal(abi, slot).status == RSP_ERROR


@abis
@pytest.mark.parametrize("count", [12, 255])
def test_a_flush_with_too_many_segments(abi: Abi, count: int) -> None:
    slot = abi.pack_request(OP_FLUSH_DISKCACHE, 1, 0, [], nr_segments=count)
    assert refusal(abi, slot).status == RSP_ERROR


@abis
def test_a_flush_needs_no_segments_and_no_sector(abi: Abi) -> None:
    slot = abi.pack_request(OP_FLUSH_DISKCACHE, 1, 2**64 - 1, [])
    assert abi.parse(slot, READ_ONLY) == Request(1, OP_FLUSH_DISKCACHE, 2**64 - 1, 0, [])


@abis
def test_eleven_segments(abi: Abi) -> None:
    slot = abi.pack_request(OP_READ, 1, 0, [WHOLE_PAGE] * MAX_SEGMENTS)
    request = abi.parse(slot, DISK)
    assert isinstance(request, Request)
    assert request.sectors == 88


@abis
@pytest.mark.parametrize(("first", "last"), [(1, 0), (7, 6), (0, 8), (8, 8), (255, 255), (0, 255)])
@pytest.mark.parametrize("position", [0, 5, 10])
def test_sectors_that_are_not_in_a_page(abi: Abi, first: int, last: int, position: int) -> None:
    segments = [WHOLE_PAGE] * MAX_SEGMENTS
    segments[position] = (9, first, last)
    assert refusal(abi, abi.pack_request(OP_READ, 1, 0, segments)).status == RSP_ERROR


@abis
@pytest.mark.parametrize("operation", [OP_READ, OP_WRITE, OP_FLUSH_DISKCACHE])
@pytest.mark.parametrize("sector", [993, 1000, 1001, 2**63, 2**64 - 8, 2**64 - 4, 2**64 - 1])
def test_beyond_the_end(abi: Abi, operation: int, sector: int) -> None:
    slot = abi.pack_request(operation, 1, sector, [WHOLE_PAGE])
    assert refusal(abi, slot).status == RSP_ERROR


@abis
def test_the_last_sectors_are_within(abi: Abi) -> None:
    assert isinstance(abi.parse(abi.pack_request(OP_READ, 1, 992, [WHOLE_PAGE]), DISK), Request)
    assert isinstance(abi.parse(abi.pack_request(OP_READ, 1, 999, [(9, 7, 7)]), DISK), Request)


@abis
def test_a_write_to_a_read_only_disk(abi: Abi) -> None:
    for operation in (OP_WRITE, OP_FLUSH_DISKCACHE):
        slot = abi.pack_request(operation, 1, 0, [WHOLE_PAGE])
        assert refusal(abi, slot, READ_ONLY).status == RSP_ERROR
    slot = abi.pack_request(OP_READ, 1, 0, [WHOLE_PAGE])
    assert isinstance(abi.parse(slot, READ_ONLY), Request)


@abis
@pytest.mark.parametrize("operation", [OP_WRITE_BARRIER, 4, OP_DISCARD, OP_INDIRECT, 7, 128, 255])
def test_what_was_not_offered_is_not_supported(abi: Abi, operation: int) -> None:
    result = refusal(abi, abi.pack_request(operation, 77, 0, [WHOLE_PAGE]))
    assert (result.id, result.operation, result.status) == (77, operation, RSP_EOPNOTSUPP)


@abis
@given(slot=st.binary(min_size=112, max_size=112), readonly=st.booleans())
def test_any_bytes_give_a_request_within_the_disk_or_a_refusal(
    abi: Abi, slot: bytes, readonly: bool
) -> None:
    disk = Disk(sectors=1000, readonly=readonly)
    result = abi.parse(slot[: abi.layout.request_size], disk)
    if isinstance(result, Refusal):
        assert result.status in (RSP_ERROR, RSP_EOPNOTSUPP)
        return
    assert len(result.segments) <= MAX_SEGMENTS
    assert result.sectors == sum(s.last - s.first + 1 for s in result.segments)
    assert all(s.first <= s.last <= 7 for s in result.segments)
    assert not result.sectors or result.sector + result.sectors <= disk.sectors
    assert not (readonly and result.sectors and result.operation != OP_READ)


@abis
@given(
    operation=st.sampled_from([OP_READ, OP_WRITE, OP_FLUSH_DISKCACHE]),
    ident=st.integers(0, 2**64 - 1),
    sector=st.integers(0, 900),
    segments=st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 7), st.integers(0, 7)).filter(
            lambda s: s[1] <= s[2]
        ),
        min_size=1,
        max_size=MAX_SEGMENTS,
    ),
)
def test_valid_requests_round_trip(
    abi: Abi, operation: int, ident: int, sector: int, segments: list[tuple[int, int, int]]
) -> None:
    result = abi.parse(abi.pack_request(operation, ident, sector, segments), DISK)
    sectors = sum(last - first + 1 for _, first, last in segments)
    assert result == Request(ident, operation, sector, sectors, [Segment(*s) for s in segments])


GOOD = {"ring-ref": "8", "event-channel": "17", "protocol": "x86_64-abi", "feature-persistent": "1"}


def test_keys_of_a_stock_linux_frontend() -> None:
    keys = FrontendKeys.parse({**GOOD, "state": "3", "virtual-device": "51712"})
    assert keys == FrontendKeys((8,), 17, ABI_X86_64, persistent=True)  # type: ignore[arg-type]


def test_keys_of_a_stock_linux_frontend_on_arm() -> None:
    """io/protocols.h: there XEN_IO_PROTO_ABI_NATIVE is "arm-abi", of one layout with x86_64."""
    abi = FrontendKeys.parse({**GOOD, "protocol": "arm-abi"}).abi
    assert abi.layout == ABI_X86_64.layout
    assert abi.segment.offsets == ABI_X86_64.segment.offsets
    assert abi.reply.offsets == ABI_X86_64.reply.offsets


def test_keys_of_a_minimal_frontend() -> None:
    keys = FrontendKeys.parse({"ring-ref": "0", "event-channel": "4294967295"})
    assert keys == FrontendKeys((0,), 2**32 - 1, ABI_NATIVE, persistent=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", range(5))
def test_a_ring_of_several_pages(order: int) -> None:
    refs = {f"ring-ref{page}": str(100 + page) for page in range(1 << order)}
    keys = FrontendKeys.parse({"event-channel": "3", "ring-page-order": str(order), **refs})
    assert keys.ring_refs == tuple(range(100, 100 + (1 << order)))


def test_one_page_with_an_order_and_the_old_name() -> None:
    assert FrontendKeys.parse({**GOOD, "ring-page-order": "0"}).ring_refs == (8,)


NOT_NUMBERS = [
    "", "-1", "0x10", " 5", "5 ", "+5", "05", "1e3", "4294967296", "99999999999", "٣", "５",
    "5\0", "\udcff", "5" * 4096, "ring",
]  # fmt: skip


@pytest.mark.parametrize("name", ["ring-ref", "event-channel", "feature-persistent"])
@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_values_that_are_no_plain_numbers(name: str, value: str) -> None:
    with pytest.raises(PeerError) as caught:
        FrontendKeys.parse({**GOOD, name: value})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["ring-ref", "event-channel"])
def test_missing_keys(name: str) -> None:
    with pytest.raises(PeerError, match=f"{name} is missing"):
        FrontendKeys.parse({key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"event-channel": "0"}, "never a port"),
        ({"protocol": "x86_16-abi"}, "unknown"),
        ({"protocol": ""}, "unknown"),
        ({"protocol": "x86_64-abi "}, "unknown"),
        ({"feature-persistent": "2"}, "neither 0 nor 1"),
        ({"ring-page-order": "5"}, "4 was offered"),
        ({"ring-page-order": "4294967295"}, "4 was offered"),
        ({"ring-page-order": "1"}, "ring-ref0 is missing"),
        ({"ring-page-order": "1", "ring-ref0": "4"}, "ring-ref1 is missing"),
        ({"ring-page-order": "1", "ring-ref0": "4", "ring-ref1": "4"}, "twice"),
        ({"multi-queue-num-queues": "2"}, "1 was offered"),
        ({"multi-queue-num-queues": "0"}, "1 was offered"),
    ],
)
def test_keys_that_make_no_sense(keys: dict[str, str], reason: str) -> None:
    with pytest.raises(PeerError, match=reason):
        FrontendKeys.parse({**GOOD, **keys})


@given(
    st.dictionaries(
        st.sampled_from(
            ["ring-ref", "ring-ref0", "ring-ref1", "ring-page-order", "event-channel",
             "protocol", "feature-persistent", "multi-queue-num-queues", "junk"]
        ),
        st.text(max_size=12) | st.integers(-5, 2**33).map(str) | st.sampled_from(list(ABIS)),
    )
)  # fmt: skip
def test_any_keys_give_sense_or_a_peer_error(keys: dict[str, str]) -> None:
    try:
        parsed = FrontendKeys.parse(keys)
    except PeerError:
        return
    assert len(parsed.ring_refs) in (1, 2, 4, 8, 16)
    assert all(0 <= ref < 2**32 for ref in parsed.ring_refs)
    assert 0 < parsed.event_channel < 2**32
