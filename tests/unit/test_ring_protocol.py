# SPDX-License-Identifier: MIT
"""Protocols as a NamedTuple declares them."""

from __future__ import annotations

import errno
from typing import NamedTuple

import pytest

from xenpy.ring_protocol import RingProtocol
from xenpy.wire import CAbi, fields_of, i8, i16, i32, u8, u16, u32, u64


class Request(NamedTuple):
    operation: u8
    id: u64
    ref: u32
    length: u16


class Response(NamedTuple):
    id: u64
    operation: u8
    status: i16


class NoStatus(NamedTuple):
    id: u64
    error: u8


class NoId(NamedTuple):
    status: i8


class NoWidth(NamedTuple):
    id: int
    status: i8


PROTOCOL = RingProtocol("test", Request, Response)


def test_the_fields_of_a_record_in_its_order() -> None:
    assert fields_of(Request) == {"operation": "B", "id": "Q", "ref": "I", "length": "H"}


@pytest.mark.parametrize(("abi", "sizes"), [(CAbi.X86_64, (24, 16)), (CAbi.X86_32, (20, 12))])
def test_it_is_laid_out_as_c_does(abi: CAbi, sizes: tuple[int, int]) -> None:
    codec = PROTOCOL.codec(abi)
    assert (codec.layout.request_size, codec.layout.response_size) == sizes
    request = Request(1, 2**64 - 1, 3, 4)
    packed = codec.pack_request(request)
    assert packed.index(b"\xff") == abi.value
    assert codec.request(packed) == request
    response = Response(7, 1, -5)
    assert codec.response(codec.pack_response(response)) == response


def test_what_the_first_bytes_of_two_slots_say() -> None:
    codec = PROTOCOL.codec(CAbi.X86_64)
    slots = codec.pack_request(Request(1, 2, 3, 4)), codec.pack_response(Response(2, 1, -5))
    whole = {"operation": 1, "id": 2, "ref": 3, "length": 4, "answered_operation": 1, "status": -5}
    assert codec.known(*slots) == whole
    assert list(codec.known(slots[0][:20], slots[1][:9])) == [
        "operation", "id", "ref", "answered_operation",
    ]  # fmt: skip
    assert codec.known(slots[0][:15], slots[1][:7]) == {"operation": 1}


def test_a_value_that_does_not_fit_its_field() -> None:
    codec = PROTOCOL.codec()
    with pytest.raises(ValueError, match="does not fit"):
        codec.pack_request(Request(1, 2, 3, 1 << 16))
    with pytest.raises(ValueError, match="does not fit"):
        codec.pack_response(Response(1, 2, -40000))


def test_a_failure_copies_what_it_can_and_says_the_errno() -> None:
    request = Request(9, 77, 3, 4)
    assert PROTOCOL.failure(request, errno.ENOSPC) == Response(77, 9, -errno.ENOSPC)
    assert PROTOCOL.failure(request, 0) == Response(77, 9, -errno.EIO)


def test_a_failure_of_ones_own() -> None:
    own = RingProtocol(
        "own", Request, NoStatus, failure=lambda request, number: NoStatus(request.id, number)
    )
    assert own.failure(Request(1, 2, 3, 4), errno.EIO) == NoStatus(2, errno.EIO)


@pytest.mark.parametrize(
    ("response", "reason"),
    [(NoStatus, "status"), (NoId, "no id"), (NoWidth, "no width"), (tuple, "NamedTuple")],
)
def test_what_is_no_protocol(response: type[tuple[int, ...]], reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        RingProtocol("bad", Request, response)


class Wide(NamedTuple):
    id: u64


class Words(NamedTuple):
    low: u32
    high: u32
    id: u64
    status: i32


class OtherId(NamedTuple):
    id: u32
    status: i16


class OtherRef(NamedTuple):
    id: u64
    ref: u16
    status: i16


class Small(NamedTuple):
    id: u32
    status: i16
    low: u32


class Narrow(NamedTuple):
    id: u32


class Long(NamedTuple):
    id: u32
    number: u64


def test_a_slot_is_a_union_as_c_aligns_it() -> None:
    assert RingProtocol("words", Wide, Words).codec(CAbi.X86_64).layout.slot_size == 24
    assert RingProtocol("words", Wide, Words).codec(CAbi.X86_32).layout.slot_size == 20
    # Twelve bytes of three words, in a union with something that is aligned to eight.
    protocol = RingProtocol("small", Long, Small)
    assert protocol.codec(CAbi.X86_64).layout.response_size == 16
    assert protocol.codec(CAbi.X86_32).layout.response_size == 12
    codec = protocol.codec(CAbi.X86_64)
    assert codec.response(codec.pack_response(Small(1, -2, 3))) == Small(1, -2, 3)
    assert RingProtocol("narrow", Narrow, Small).codec().layout.request_size == 4


@pytest.mark.parametrize("response", [OtherId, OtherRef])
def test_a_field_of_two_widths(response: type[tuple[int, ...]]) -> None:
    with pytest.raises(TypeError, match="one width"):
        RingProtocol("bad", Request, response)


@pytest.mark.parametrize("name", ["", "a/b", "Bad Name", "x" * 40])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        RingProtocol(name, Request, Response)


def test_protocols_that_there_are() -> None:
    for abi in CAbi:
        assert CAbi.of_protocol(abi.protocol) is abi
    assert CAbi.of_protocol("arm-abi") is CAbi.X86_64
    with pytest.raises(ValueError, match="sparc"):
        CAbi.of_protocol("sparc-abi")
