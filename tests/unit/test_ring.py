# SPDX-License-Identifier: MIT
"""Rings and byte streams against a peer that writes any index it likes (XSA-39)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from xenpy.errors import PeerError, StaleHandleError
from xenpy.memory import LocalMemory
from xenpy.ring import BackRing, FrontRing, RingLayout, StreamIn, StreamOut
from xenpy.shared_byte import SharedByte
from xenpy.types import PAGE_SIZE

LAYOUT = RingLayout(112, 16)
REQ_PROD, RSP_PROD = 0, 8
STARTS = [0, 2**31 - 3, 2**32 - 3]

starts = pytest.mark.parametrize("start", STARTS)


@pytest.fixture
def page() -> Iterator[LocalMemory]:
    memory = LocalMemory(PAGE_SIZE)
    yield memory
    memory.close()


def scribble(page: LocalMemory, offset: int, value: int) -> None:
    with page.view(offset, 4) as view:
        struct.pack_into("<I", view, 0, value % 2**32)


def word(page: LocalMemory, offset: int) -> int:
    with page.view(offset, 4) as view:
        return int(struct.unpack("<I", view)[0])


@starts
def test_a_full_ring_is_taken_and_one_request_more_is_an_overrun(
    page: LocalMemory, start: int
) -> None:
    front = FrontRing(page, LAYOUT, start=start)
    back = BackRing(page, LAYOUT)
    front.put([bytes([number]) * 112 for number in range(32)])
    scribble(page, REQ_PROD, start + 33)
    for look in (back.take, back.final_check):
        with pytest.raises(PeerError, match="req_prod"):
            look()
    scribble(page, REQ_PROD, start + 32)
    assert [slot[0] for slot in back.take()] == list(range(32))


@starts
def test_requests_in_flight_count_against_the_ring(page: LocalMemory, start: int) -> None:
    """32 slots hold requests and unsent responses together: 8 taken leave room for 24."""
    front = FrontRing(page, LAYOUT, start=start)
    back = BackRing(page, LAYOUT)
    front.put([bytes(112)] * 8)
    assert len(back.take()) == 8
    scribble(page, REQ_PROD, start + 33)
    with pytest.raises(PeerError):
        back.take()
    back.push([bytes(16)] * 8)
    assert len(back.take()) == 25


@starts
@pytest.mark.parametrize("back_by", [1, 4, 5, 2**31])
def test_a_producer_that_goes_backwards_is_refused(
    page: LocalMemory, start: int, back_by: int
) -> None:
    front = FrontRing(page, LAYOUT, start=start)
    back = BackRing(page, LAYOUT)
    front.put([bytes(112)] * 4)
    back.take()
    scribble(page, REQ_PROD, start + 4 - back_by)
    for look in (back.take, back.final_check):
        with pytest.raises(PeerError, match="req_prod"):
            look()


@starts
@pytest.mark.parametrize("extra", [1, 32, 2**31, 2**32 - 5])
def test_a_backend_answers_no_more_than_it_was_asked(
    page: LocalMemory, start: int, extra: int
) -> None:
    front = FrontRing(page, LAYOUT, start=start)
    front.put([bytes(112)] * 4)
    scribble(page, RSP_PROD, start + 4 + extra)
    for look in (front.take, front.final_check):
        with pytest.raises(PeerError, match="rsp_prod"):
            look()


def test_our_own_index_is_never_read_back(page: LocalMemory) -> None:
    """rsp_prod lies in the shared page, where the frontend may overwrite it."""
    front = FrontRing(page, LAYOUT)
    back = BackRing(page, LAYOUT)
    front.put([bytes(112)] * 4)
    back.take()
    scribble(page, RSP_PROD, 77)
    back.push([bytes(16)] * 2)
    assert word(page, RSP_PROD) == 2


def test_more_than_fits_or_was_asked_is_our_own_mistake(page: LocalMemory) -> None:
    front = FrontRing(page, LAYOUT)
    back = BackRing(page, LAYOUT)
    with pytest.raises(ValueError, match="33 requests into 32 slots"):
        front.put([bytes(112)] * 33)
    front.put([bytes(112)])
    back.take()
    with pytest.raises(ValueError, match="2 responses to 1 requests"):
        back.push([bytes(16)] * 2)
    with pytest.raises(ValueError, match="15 bytes, 16 expected"):
        back.push([bytes(15)])


class Pipe:
    """A byte ring of 16 bytes at 64, its consumer's index at 0 and its producer's at 4."""

    def __init__(self, page: LocalMemory, start: int) -> None:
        self.page = page
        scribble(page, 0, start)
        scribble(page, 4, start)
        self.reader = StreamIn(page, data=64, size=16, cons=0, prod=4)
        self.writer = StreamOut(page, data=64, size=16, prod=4, cons=0)


@starts
def test_bytes_come_out_in_order_round_and_round(page: LocalMemory, start: int) -> None:
    pipe = Pipe(page, start)
    sent = got = b""
    for length in [1, 16, 7, 16, 3, 15, 16, 16, 2, 20]:
        content = bytes((len(sent) + at) % 256 for at in range(length))
        sent += content[: pipe.writer.write(content)]
        got += pipe.reader.read(9) + pipe.reader.read()
    assert pipe.writer.write(b"") == 0
    assert got == sent
    assert len(sent) == 108
    with page.view() as view:
        assert not any(view[80:]), "it wrote behind the ring"


@starts
@pytest.mark.parametrize("ahead", [17, 2**31, 2**32 - 1])
def test_a_stream_s_peer_out_of_bounds_is_refused(
    page: LocalMemory, start: int, ahead: int
) -> None:
    pipe = Pipe(page, start)
    scribble(page, 4, start + ahead)
    with pytest.raises(PeerError, match="prod"):
        pipe.reader.read()
    for look in (lambda: pipe.reader.queued, lambda: pipe.reader.readinto(bytearray(99))):
        with pytest.raises(PeerError, match="prod"):
            look()
    scribble(page, 4, start)
    scribble(page, 0, start - ahead)
    with pytest.raises(PeerError, match="cons"):
        pipe.writer.write(b"x")
    with pytest.raises(PeerError, match="cons"):
        _ = pipe.writer.unread
    content = bytearray(b"x")
    with pytest.raises(PeerError) as caught:
        pipe.writer.write(content)
    content += b"resized while the error lives"
    assert caught.value.__traceback__ is not None


@starts
def test_bytes_are_read_into_a_buffer_of_the_caller_s(page: LocalMemory, start: int) -> None:
    pipe = Pipe(page, start)
    sent, got = b"", bytearray()
    buffer = bytearray(11)
    for length in [16, 5, 16, 1, 9]:
        content = bytes((len(sent) + at) % 256 for at in range(length))
        sent += content[: pipe.writer.write(memoryview(content))]
        assert pipe.reader.queued == pipe.writer.unread == len(sent) - len(got)
        with memoryview(buffer)[2:] as view:
            while count := pipe.reader.readinto(view):
                got += buffer[2 : 2 + count]
    assert got == sent
    assert buffer[:2] == b"\0\0"
    with pytest.raises(BufferError):
        pipe.reader.readinto(memoryview(b"read only"))


def test_a_stream_whose_bytes_lie_elsewhere_goes_on_where_another_stopped(
    page: LocalMemory,
) -> None:
    with LocalMemory(PAGE_SIZE) as apart:
        scribble(page, 8, 5)
        scribble(page, 12, 5)
        first = StreamOut(page, prod=12, cons=8, data=0, size=PAGE_SIZE, data_in=apart)
        first.write(b"one")
        second = StreamOut(page, prod=12, cons=8, data=0, size=PAGE_SIZE, data_in=apart)
        assert second.write(b"two") == 3
        reader = StreamIn(page, cons=8, prod=12, data=0, size=PAGE_SIZE, data_in=apart)
        assert (reader.read(2), reader.read(), reader.read()) == (b"on", b"etwo", b"")
    assert not any(page.view()[16:])
    for use in (reader.read, lambda: reader.readinto(bytearray(1)), lambda: second.write(b"x")):
        with pytest.raises(StaleHandleError):
            use()


def test_bits_of_a_shared_byte(page: LocalMemory) -> None:
    byte = SharedByte(page, 7)
    byte.put(0b1000)
    byte.add(0b0011)
    assert (byte.get(), byte.take(0b0110), byte.get()) == (0b1011, 0b0010, 0b1001)
    assert page.view(0, 16).tobytes() == bytes(7) + b"\x09" + bytes(8)
    with pytest.raises(ValueError, match="a byte at 4096"):
        SharedByte(page, PAGE_SIZE)
