# SPDX-License-Identifier: MIT
"""XenStore's wire: packets however they are cut, and nothing unbounded kept."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.errors import PeerError, XenError
from xenpy.store_pyxs import Op
from xenpy.store_wire import (
    DIRECTORY_MAX,
    PAYLOAD_MAX,
    PacketReader,
    encode_packet,
    parse_directory_part,
    parse_error,
    parse_event,
)


def header(op: int, size: int) -> bytes:
    return struct.pack("=IIII", op, 1, 0, size)


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 30), min_size=1))
def test_packets_come_out_whole_however_they_are_cut(
    payloads: list[bytes], pieces: list[int]
) -> None:
    stream = b"".join(
        encode_packet(Op.READ, number, 7, payload) for number, payload in enumerate(payloads)
    )
    reader = PacketReader()
    got: list[tuple[int, int, bytes]] = []
    turn = 0
    while stream:
        size = pieces[turn % len(pieces)]
        got += [(p.rq_id, p.tx_id, bytes(p.payload)) for p in reader.feed(stream[:size])]
        stream = stream[size:]
        turn += 1
    assert got == [(number, 7, payload) for number, payload in enumerate(payloads)]


@pytest.mark.parametrize("size", [PAYLOAD_MAX + 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("op", [Op.READ, Op.WATCH_EVENT, 77])
def test_a_longer_payload_is_refused_before_a_byte_of_it_is_kept(op: int, size: int) -> None:
    reader = PacketReader()
    with pytest.raises(PeerError, match=f"announces {size} bytes"):
        list(reader.feed(header(op, size)))


def test_the_longest_payload_is_taken() -> None:
    payload = bytes(PAYLOAD_MAX)
    (packet,) = PacketReader().feed(header(Op.READ, PAYLOAD_MAX) + payload)
    assert packet.payload == payload


def test_a_directory_may_be_longer_but_not_endless() -> None:
    """oxenstored lists a long directory in one packet."""
    size = PAYLOAD_MAX + 1
    (packet,) = PacketReader().feed(header(Op.DIRECTORY, size) + bytes(size))
    assert len(packet.payload) == size
    with pytest.raises(PeerError, match="announces"):
        list(PacketReader().feed(header(Op.DIRECTORY, DIRECTORY_MAX + 1)))


def test_we_send_nothing_longer_either() -> None:
    with pytest.raises(XenError) as caught:
        encode_packet(Op.WRITE, 1, 0, bytes(PAYLOAD_MAX + 1))
    assert caught.value.errno == errno.E2BIG


def test_an_event_has_a_path_and_a_token() -> None:
    assert parse_event(b"/a/b\0token\0") == ("/a/b", "token")
    for payload in (b"", b"/a/b", b"/a/b\0"):
        with pytest.raises(PeerError, match="without a token"):
            parse_event(payload)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"7\0a\0b\0", ("7", b"a\0b\0", False)),
        (b"7\0a\0b\0\0", ("7", b"a\0b\0", True)),
        (b"7\0\0", ("7", b"", True)),
        (b"7\0", ("7", b"", False)),
    ],
)
def test_parts_of_a_directory(payload: bytes, expected: tuple[str, bytes, bool]) -> None:
    assert parse_directory_part(payload) == expected


@pytest.mark.parametrize("payload", [b"", b"7", b"\0a\0"])
def test_a_part_without_a_generation_is_refused(payload: bytes) -> None:
    with pytest.raises(PeerError, match="without a generation"):
        parse_directory_part(payload)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (b"ENOENT\0", errno.ENOENT), (b"EAGAIN", errno.EAGAIN), (b"EQUOTA\0", errno.ENOSPC),
        (b"EWHATEVER\0", errno.EIO), (b"errorcode\0", errno.EIO), (b"\xff" * 100, errno.EIO),
        (b"", errno.EIO),
    ],
)  # fmt: skip
def test_errors_by_name(name: bytes, number: int) -> None:
    error = parse_error(name, "read", path="/a")
    assert (error.errno, error.arguments) == (number, {"path": "/a"})
