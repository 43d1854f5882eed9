# SPDX-License-Identifier: MIT
"""Captures: what is written is read, and what is none is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.capture import CHUNK, NO_RING, Capture, Head, Tail, Writer, entry
from xenpy.drivers.block.protocol import ABI_X86_32, ABI_X86_64, OP_INDIRECT
from xenpy.drivers.block.replay import wanted
from xenpy.drivers.block.trace_text import decode
from xenpy.trace import RECORD, TraceRecord

HEAD = Head("vbd3/1/51712", "block", "x86_64-abi", 2, start=1_000)
SLOT = ABI_X86_64.pack_request(1, 7, 2048, [(9, 0, 7), (10, 2, 3)])
ANSWER = ABI_X86_64.response(7, 1, -1)


def record(request: bytes, response: bytes = bytes(16), detail: int = 0) -> TraceRecord:
    padded = request.ljust(112, b"\0"), response.ljust(16, b"\0")
    return TraceRecord(2_000, 5_000, detail, 3, len(request), len(response), *padded)


ONE = RECORD.pack(*record(SLOT, ANSWER, detail=10))


def written(*chunks: tuple[int, bytes], head: Head = HEAD, tail: Tail | None = None) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, head)
    for ring, records in chunks:
        writer.add(ring, records)
    writer.end(tail or Tail(len(chunks), 0, 1.5))
    return file.getvalue()


def test_what_is_written_is_read() -> None:
    tail = Tail(3, 2, 1.5)
    capture = Capture(io.BytesIO(written((1, ONE), (0, ONE * 2), tail=tail)))
    assert capture.head == HEAD
    assert capture.tail is None
    assert [(ring, RECORD.pack(*one)) for ring, one in capture] == [(1, ONE), (0, ONE), (0, ONE)]
    assert capture.tail == tail


def test_a_passive_one_says_so() -> None:
    head = Head("vbd/1/51712", "block", "x86_64-abi", 1, 5, exact=False, interval=0.0002)
    assert Capture(io.BytesIO(written(head=head))).head == head
    assert str(head) == "vbd/1/51712: 1 ring, passive, every 0.0002 s"
    assert str(HEAD) == "vbd3/1/51712: 2 rings, exact"


def test_a_request_as_json_has_it() -> None:
    one = record(SLOT, ANSWER, detail=10)
    assert entry(1, one, HEAD.start, decode("x86_64-abi", one)) == {
        "ring": 1, "index": 3, "time": 1e-6, "latency": 3e-6, "op": "write", "id": 7,
        "sector": 2048, "sectors": 10, "nr_segments": 2, "segments": [[9, 0, 7], [10, 2, 3]],
        "status": "error", "request": SLOT.hex(), "response": ANSWER.hex(),
    }  # fmt: skip


def changed(**changes: object) -> bytes:
    """A capture whose head says something else."""
    return json.dumps({**HEAD.line(), **changes}).encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"{}\n", b"[1]\n", b"\xff\xfe\n", changed(capture=2), changed(rings=0),
     changed(rings="2"), changed(interval="x"), b"{" * 10_000],
)  # fmt: skip
def test_what_is_no_capture_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="that is no capture"):
        Capture(io.BytesIO(content))


@pytest.mark.parametrize(
    "driver",
    ["", "x.py", "./x.py", "/tmp/x.py:Class", "x.py:Class", "a b", "a\n", "-a", "..", "\u00e4"],
)
def test_a_capture_names_a_driver_and_never_a_file(driver: str) -> None:
    with pytest.raises(ValueError, match="no driver's name"):
        Capture(io.BytesIO(changed(driver=driver)))


@pytest.mark.parametrize("driver", ["block", "9pfs", "lamp_2", "my-Lamp"])
def test_a_driver_s_name_is_read_as_it_is(driver: str) -> None:
    assert Capture(io.BytesIO(changed(driver=driver))).head.driver == driver


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (b"", "it was cut off"),
        (CHUNK.pack(0, 1) + ONE[:-1], "it was cut off"),
        (CHUNK.pack(0, 1) + ONE, "it was cut off"),
        (CHUNK.pack(2, 1) + ONE, "1 records of ring 2"),
        (CHUNK.pack(0, 0), "0 records of ring 0"),
        (CHUNK.pack(0, 1 << 20), "1048576 records"),
        (CHUNK.pack(NO_RING, 3) + b"{}\n", "end makes no sense"),
        (CHUNK.pack(NO_RING, 1 << 31) + b"{}\n", "it was cut off"),
    ],
)
def test_what_goes_wrong_later_is_said(rest: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(Capture(io.BytesIO(changed() + rest)))


@given(st.binary(max_size=400))
def test_anything_is_read_or_refused(content: bytes) -> None:
    for start in (b"", changed()):
        try:
            capture = Capture(io.BytesIO(start + content))
            for ring, _ in capture:
                assert ring < 2
        except ValueError:
            continue


@given(
    st.sampled_from([0, 1, 2, 3, 4, 5, 6, 6, 255]),
    st.binary(min_size=111, max_size=111),
    st.binary(min_size=16, max_size=16),
    st.booleans(),
)
def test_whatever_a_guest_wrote_can_be_shown_and_asked_for_again(
    operation: int, rest: bytes, response: bytes, narrow: bool
) -> None:
    layout = ABI_X86_32 if narrow else ABI_X86_64
    one = record(bytes([operation]) + rest, response, detail=5)
    fields: Mapping[str, object] = decode(layout.name, one)
    json.dumps(entry(0, one, 0, decode(layout.name, one)))
    count = fields.get("nr_segments", 0)
    assert isinstance(count, int)
    if operation == OP_INDIRECT and count > 256:
        with pytest.raises(ValueError, match="indirect segments"):
            wanted(layout.name, one)
        return
    shape = wanted(layout.name, one).shape
    assert (shape.sector, shape.nr_segments) == (fields["sector"], count)
    assert len(shape.spans) == (count if shape.indirect else min(count, 11))
