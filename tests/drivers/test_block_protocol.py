# SPDX-License-Identifier: MIT
"""blkif's slots and keys: layouts of the three ABIs, and nothing unchecked gets through."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.drivers.block.frontend_keys import QueueKeys, parse_queues
from xenpy.drivers.block.protocol import (
    ABI_NATIVE,
    ABI_X86_32,
    ABI_X86_64,
    ABIS,
    DISCARD_SECURE,
    MAX_INDIRECT_SEGMENTS,
    MAX_SEGMENTS,
    OP_DISCARD,
    OP_FLUSH_DISKCACHE,
    OP_READ,
    OP_WRITE,
    OP_WRITE_BARRIER,
    RSP_EOPNOTSUPP,
    RSP_ERROR,
    RSP_OKAY,
    Abi,
    Disk,
    Indirect,
    Refusal,
    Request,
)
from xenpy.errors import PeerError
from xenpy.types import GrantRef, Port

DISK = Disk(sectors=1000, readonly=False)
READ_ONLY = Disk(sectors=1000, readonly=True)
THIN = Disk(sectors=1000, readonly=False, discard=True)
WHOLE_PAGE = (9, 0, 7)

abis = pytest.mark.parametrize("abi", [ABI_X86_32, ABI_X86_64], ids=lambda abi: abi.name)
flushes = pytest.mark.parametrize("operation", [OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER])


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


def test_an_indirect_request_is_laid_out_as_blkif_h_has_it() -> None:
    grefs = list(range(11, 19))
    for abi, layout in ((ABI_X86_64, "<BBHxxxxQQHxx8I"), (ABI_X86_32, "<BBHQQHxx8I")):
        slot = abi.pack_indirect(OP_WRITE, 0x1122334455667788, 0x99, 200, grefs)
        expected = (6, OP_WRITE, 200, 0x1122334455667788, 0x99, 0, *grefs)
        assert struct.unpack_from(layout, slot) == expected
        assert len(slot) == abi.layout.request_size


def test_a_discard_is_laid_out_as_blkif_h_has_it() -> None:
    slot = ABI_X86_64.pack_discard(0x1122334455667788, 0x99, 2**40, flag=1)
    assert struct.unpack_from("<BBxxxxxxQQQ", slot) == (5, 1, 0x1122334455667788, 0x99, 2**40)
    slot = ABI_X86_32.pack_discard(0x1122334455667788, 0x99, 2**40, flag=1)
    assert struct.unpack_from("<BBxxQQQ", slot) == (5, 1, 0x1122334455667788, 0x99, 2**40)


def test_native_is_this_machine_s_abi() -> None:
    assert ABIS["native"] is ABI_NATIVE
    assert ABI_NATIVE is ABI_X86_64


@abis
def test_a_good_request_comes_out_as_it_went_in(abi: Abi) -> None:
    slot = abi.pack_request(OP_WRITE, 2**64 - 1, 990, [(9, 0, 7), (2**32 - 1, 3, 4)])
    expected = Request(2**64 - 1, OP_WRITE, 990, 10, [(9, 0, 7), (2**32 - 1, 3, 4)])
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
@flushes
@pytest.mark.parametrize("count", [12, 255])
def test_a_flush_with_too_many_segments(abi: Abi, operation: int, count: int) -> None:
    slot = abi.pack_request(operation, 1, 0, [], nr_segments=count)
    assert refusal(abi, slot).status == RSP_ERROR


@abis
@flushes
def test_a_flush_needs_no_segments_and_no_sector(abi: Abi, operation: int) -> None:
    slot = abi.pack_request(operation, 1, 2**64 - 1, [])
    assert abi.parse(slot, READ_ONLY) == Request(1, operation, 2**64 - 1, 0, [])


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
@pytest.mark.parametrize("operation", [OP_READ, OP_WRITE, OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER])
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
    for operation in (OP_WRITE, OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER):
        slot = abi.pack_request(operation, 1, 0, [WHOLE_PAGE])
        assert refusal(abi, slot, READ_ONLY).status == RSP_ERROR
    slot = abi.pack_request(OP_READ, 1, 0, [WHOLE_PAGE])
    assert isinstance(abi.parse(slot, READ_ONLY), Request)


@abis
@pytest.mark.parametrize("operation", [4, OP_DISCARD, 7, 128, 255])
def test_what_was_not_offered_is_not_supported(abi: Abi, operation: int) -> None:
    result = refusal(abi, abi.pack_request(operation, 77, 0, [WHOLE_PAGE]))
    assert (result.id, result.operation, result.status) == (77, operation, RSP_EOPNOTSUPP)


@abis
@pytest.mark.parametrize(
    ("sector", "sectors"),
    [(0, 1001), (1000, 1), (999, 2), (2**64 - 1, 1), (2**64 - 8, 8), (8, 2**64 - 8), (8, 2**64 - 1),
     (2**63, 2**63), (2**64 - 1, 2**64 - 1), (1, 1000), (0, 0), (2**64 - 1, 0)],
)  # fmt: skip
def test_a_discard_of_nothing_or_beyond_the_end(abi: Abi, sector: int, sectors: int) -> None:
    assert refusal(abi, abi.pack_discard(7, sector, sectors), THIN).status == RSP_ERROR


@abis
def test_a_discard_within_the_disk(abi: Abi) -> None:
    for sector, sectors in ((0, 1000), (999, 1)):
        expected = Request(7, OP_DISCARD, sector, sectors, ())
        assert abi.parse(abi.pack_discard(7, sector, sectors), THIN) == expected


@abis
def test_a_discard_that_was_not_offered(abi: Abi) -> None:
    secure = abi.pack_discard(7, 0, 8, flag=DISCARD_SECURE)
    for slot, disk in ((secure, THIN), (secure, DISK), (abi.pack_discard(7, 0, 8), DISK)):
        result = refusal(abi, slot, disk)
        assert (result.id, result.operation, result.status) == (7, OP_DISCARD, RSP_EOPNOTSUPP)
    fixed = Disk(sectors=1000, readonly=True, discard=True)
    assert refusal(abi, abi.pack_discard(7, 0, 8), fixed).status == RSP_ERROR


disks = st.builds(Disk, st.sampled_from([1, 1000, 2**40]), st.booleans(), st.booleans())


def check_bounds(request: Request, disk: Disk, most: int) -> None:
    """Everything that is relied upon once a request has been accepted."""
    assert len(request.segments) <= most
    assert all(first <= last <= 7 for _, first, last in request.segments)
    if request.operation == OP_DISCARD:
        assert disk.discard
        assert not request.segments
    else:
        assert request.sectors == sum(last - first + 1 for _, first, last in request.segments)
    assert request.sectors or request.operation in (OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER)
    assert not request.sectors or request.sector + request.sectors <= disk.sectors
    assert not (disk.readonly and request.sectors and request.operation != OP_READ)


@abis
@given(
    operation=st.sampled_from(range(7)) | st.integers(0, 255),
    rest=st.binary(min_size=111, max_size=111),
    disk=disks,
)
def test_any_bytes_give_a_request_within_the_disk_or_a_refusal(
    abi: Abi, operation: int, rest: bytes, disk: Disk
) -> None:
    slot = bytes([operation]) + rest[: abi.layout.request_size - 1]
    result = abi.parse(slot, disk)
    start = abi.header.offsets["id"]
    assert result.id == int.from_bytes(slot[start : start + 8], "little")
    if isinstance(result, Refusal):
        assert result.status in (RSP_ERROR, RSP_EOPNOTSUPP)
    elif isinstance(result, Indirect):
        assert 1 <= result.count <= MAX_INDIRECT_SEGMENTS
        assert result.operation in (OP_READ, OP_WRITE)
        assert sum(length for _, length in result.parts) == 8 * result.count
    else:
        check_bounds(result, disk, MAX_SEGMENTS)


@abis
@given(
    operation=st.sampled_from([OP_READ, OP_WRITE]),
    count=st.integers(1, MAX_INDIRECT_SEGMENTS),
    sector=st.integers(0, 2**64 - 1) | st.integers(0, 1000),
    table=st.binary(min_size=8, max_size=64)
    | st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 7), st.integers(0, 8)), min_size=1
    ),
    disk=disks,
)
def test_any_table_gives_a_request_within_the_disk_or_a_refusal(
    abi: Abi,
    operation: int,
    count: int,
    sector: int,
    table: bytes | list[tuple[int, int, int]],
    disk: Disk,
) -> None:
    indirect = abi.parse(abi.pack_indirect(operation, 7, sector, count, [5]), disk)
    assert indirect == Indirect(7, operation, sector, count, (5,))
    raw = table if isinstance(table, bytes) else abi.pack_segments(table)
    result = abi.resolve(indirect, (raw * (4096 // len(raw) + 1))[:4096], disk)
    assert (result.id, result.operation) == (7, operation)
    if isinstance(result, Refusal):
        assert result.status == RSP_ERROR
    else:
        assert len(result.segments) == count
        check_bounds(result, disk, MAX_INDIRECT_SEGMENTS)


@abis
@pytest.mark.parametrize("count", [0, 257, 512, 513, 2048, 4096, 65535])
def test_indirect_counts(abi: Abi, count: int) -> None:
    result = refusal(abi, abi.pack_indirect(OP_READ, 7, 0, count, range(8)))
    assert (result.id, result.operation, result.status) == (7, OP_READ, RSP_ERROR)


@abis
@pytest.mark.parametrize("operation", [*range(2, 8), 128, 255])
def test_an_indirect_request_reads_or_writes(abi: Abi, operation: int) -> None:
    """blkback answers with the operation inside, and Linux's frontend looks for that one."""
    result = refusal(abi, abi.pack_indirect(operation, 7, 0, 1, [5]))
    assert (result.id, result.operation, result.status) == (7, operation, RSP_ERROR)


@abis
def test_an_indirect_request_names_no_more_pages_than_it_needs(abi: Abi) -> None:
    for count in (1, 255, 256):
        indirect = abi.parse(abi.pack_indirect(OP_WRITE, 7, 9, count, range(100, 108)), DISK)
        assert indirect == Indirect(7, OP_WRITE, 9, count, (100,))
        assert list(indirect.parts) == [(100, 8 * count)]
    # What a larger offer would need.
    assert list(Indirect(7, OP_READ, 0, 1025, (1, 2, 3)).parts) == [(1, 4096), (2, 4096), (3, 8)]


@abis
def test_a_good_indirect_request_comes_out_as_it_went_in(abi: Abi) -> None:
    table = [(ref, ref % 8, 7) for ref in range(200)]
    disk = Disk(sectors=10**6, readonly=False)
    indirect = abi.parse(abi.pack_indirect(OP_WRITE, 2**64 - 1, 99, 200, [5]), disk)
    assert isinstance(indirect, Indirect)
    expected = Request(2**64 - 1, OP_WRITE, 99, 900, [tuple(segment) for segment in table])
    assert abi.resolve(indirect, abi.pack_segments(table) + b"more", disk) == expected


@abis
@pytest.mark.parametrize(("sector", "readonly"), [(8, False), (2**64 - 2048, False), (0, True)])
def test_an_indirect_write_where_it_may_not_go(abi: Abi, sector: int, readonly: bool) -> None:
    disk = Disk(sectors=2048, readonly=readonly)
    indirect = abi.parse(abi.pack_indirect(OP_WRITE, 7, sector, 256, [5]), disk)
    assert isinstance(indirect, Indirect)
    result = abi.resolve(indirect, abi.pack_segments([WHOLE_PAGE] * 256), disk)
    assert isinstance(result, Refusal)
    assert (result.id, result.operation, result.status) == (7, OP_WRITE, RSP_ERROR)


@abis
@given(
    operation=st.sampled_from([OP_READ, OP_WRITE, OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER]),
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
    assert result == Request(ident, operation, sector, sectors, [tuple(s) for s in segments])


def queue(port: int, *refs: int, abi: Abi = ABI_X86_64, persistent: bool = False) -> QueueKeys:
    return QueueKeys(tuple(GrantRef(ref) for ref in refs), Port(port), abi, persistent)


GOOD = {"ring-ref": "8", "event-channel": "17", "protocol": "x86_64-abi", "feature-persistent": "1"}


def test_keys_of_a_stock_linux_frontend() -> None:
    keys = parse_queues({**GOOD, "state": "3", "virtual-device": "51712"}, 1)
    assert keys == (queue(17, 8, persistent=True),)


def test_keys_of_a_stock_linux_frontend_on_arm() -> None:
    """io/protocols.h: there XEN_IO_PROTO_ABI_NATIVE is "arm-abi", of one layout with x86_64."""
    abi = parse_queues({**GOOD, "protocol": "arm-abi"}, 1)[0].abi
    assert abi.layout == ABI_X86_64.layout
    assert abi.segment.offsets == ABI_X86_64.segment.offsets
    assert abi.reply.offsets == ABI_X86_64.reply.offsets


def test_keys_of_a_minimal_frontend() -> None:
    keys = parse_queues({"ring-ref": "0", "event-channel": "4294967295"}, 1)
    assert keys == (queue(2**32 - 1, 0, abi=ABI_NATIVE),)


@pytest.mark.parametrize("order", range(5))
def test_a_ring_of_several_pages(order: int) -> None:
    refs = {f"ring-ref{page}": str(100 + page) for page in range(1 << order)}
    keys = parse_queues({"event-channel": "3", "ring-page-order": str(order), **refs}, 1)
    assert keys == (queue(3, *range(100, 100 + (1 << order)), abi=ABI_NATIVE),)


def test_one_page_with_an_order_and_the_old_name() -> None:
    assert parse_queues({**GOOD, "ring-page-order": "0"}, 1) == (queue(17, 8, persistent=True),)


QUEUES = {
    "multi-queue-num-queues": "2", "ring-page-order": "1", "protocol": "x86_32-abi",
    "queue-0": "", "queue-0/event-channel": "5", "queue-0/ring-ref0": "8", "queue-0/ring-ref1": "9",
    "queue-1": "", "queue-1/event-channel": "6", "queue-1/ring-ref0": "4", "queue-1/ring-ref1": "7",
}  # fmt: skip


def test_keys_of_several_queues() -> None:
    expected = (queue(5, 8, 9, abi=ABI_X86_32), queue(6, 4, 7, abi=ABI_X86_32))
    assert parse_queues(QUEUES, 2) == expected
    # A frontend that had one queue before leaves its keys behind.
    assert parse_queues({**QUEUES, "event-channel": "5", "ring-ref": "8"}, 8) == expected


def test_one_queue_at_the_top_or_in_a_directory_of_its_own() -> None:
    inside = {"queue-0/ring-ref": "3", "queue-0/event-channel": "4"}
    one = {"multi-queue-num-queues": "1"}
    top = (queue(17, 8, persistent=True),)
    assert parse_queues({**GOOD, **one}, 2) == top
    assert parse_queues({**inside, **one}, 2) == (queue(4, 3, abi=ABI_NATIVE),)
    assert parse_queues({**GOOD, **inside}, 2) == top


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"queue-1/ring-ref0": "9"}, "ring-ref is given twice"),
        ({"queue-1/event-channel": "5"}, "event-channel is given twice"),
        ({"queue-1/event-channel": "0"}, "queue-1/event-channel is 0"),
        ({"queue-1/ring-ref1": "-1"}, "queue-1/ring-ref1 is '-1'"),
        ({"multi-queue-num-queues": "3"}, "queue-2/ring-ref0 is missing"),
        ({"multi-queue-num-queues": "4"}, "1 to 3 were offered"),
        ({"multi-queue-num-queues": "0"}, "1 to 3 were offered"),
        ({"multi-queue-num-queues": "4294967295"}, "1 to 3 were offered"),
        ({"multi-queue-num-queues": "two"}, "not a number"),
        ({"ring-page-order": "0", "queue-1/ring-ref0": "8"}, "ring-ref is given twice"),
    ],
)
def test_keys_of_queues_that_make_no_sense(keys: dict[str, str], reason: str) -> None:
    with pytest.raises(PeerError, match=reason):
        parse_queues({**QUEUES, **keys}, 3)


@pytest.mark.parametrize("name", [name for name in QUEUES if "/" in name])
def test_missing_keys_of_queues(name: str) -> None:
    with pytest.raises(PeerError, match=f"{name} is missing"):
        parse_queues({key: value for key, value in QUEUES.items() if key != name}, 2)


NOT_NUMBERS = [
    "", "-1", "0x10", " 5", "5 ", "+5", "05", "1e3", "4294967296", "99999999999", "٣", "５",
    "5\0", "\udcff", "5" * 4096, "ring",
]  # fmt: skip


@pytest.mark.parametrize("name", ["ring-ref", "event-channel", "feature-persistent"])
@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_values_that_are_no_plain_numbers(name: str, value: str) -> None:
    with pytest.raises(PeerError) as caught:
        parse_queues({**GOOD, name: value}, 1)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["ring-ref", "event-channel"])
def test_missing_keys(name: str) -> None:
    with pytest.raises(PeerError, match=f"{name} is missing"):
        parse_queues({key: value for key, value in GOOD.items() if key != name}, 1)


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
        ({"multi-queue-num-queues": "2"}, "1 to 1 were offered"),
        ({"multi-queue-num-queues": "0"}, "1 to 1 were offered"),
    ],
)
def test_keys_that_make_no_sense(keys: dict[str, str], reason: str) -> None:
    with pytest.raises(PeerError, match=reason):
        parse_queues({**GOOD, **keys}, 1)


@given(
    st.dictionaries(
        st.sampled_from(
            ["ring-ref", "ring-ref0", "ring-ref1", "ring-page-order", "event-channel",
             "protocol", "feature-persistent", "multi-queue-num-queues", "junk", "queue-0/ring-ref",
             "queue-0/event-channel", "queue-1/ring-ref", "queue-1/event-channel"]
        ),
        st.text(max_size=12) | st.integers(-5, 2**33).map(str) | st.sampled_from(list(ABIS)),
    )
)  # fmt: skip
def test_any_keys_give_sense_or_a_peer_error(keys: dict[str, str]) -> None:
    try:
        parsed = parse_queues(keys, 2)
    except PeerError:
        return
    assert len(parsed) in (1, 2)
    for one in parsed:
        assert len(one.ring_refs) in (1, 2, 4, 8, 16)
        assert all(0 <= ref < 2**32 for ref in one.ring_refs)
        assert 0 < one.event_channel < 2**32
