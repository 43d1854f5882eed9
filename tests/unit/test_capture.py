# SPDX-License-Identifier: MIT
"""Captures: what is written is read, and what is none is refused with its line."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.capture import Head, entry, read, tail
from xenpy.drivers.block.protocol import ABI_X86_32, ABI_X86_64
from xenpy.drivers.block.replay import shape_of
from xenpy.drivers.block.trace_text import decode
from xenpy.trace import TraceRecord

HEAD = Head("vbd3/1/51712", "block", "x86_64-abi", 2)


def file_of(*lines: object) -> io.StringIO:
    return io.StringIO("".join(json.dumps(line) + "\n" for line in lines))


def record(request: bytes, response: bytes = bytes(16), detail: int = 0) -> TraceRecord:
    padded = request.ljust(112, b"\0"), response.ljust(16, b"\0")
    return TraceRecord(2_000, 5_000, detail, 3, len(request), len(response), *padded)


def test_what_is_written_is_read() -> None:
    slot = ABI_X86_64.pack_request(1, 7, 2048, [(9, 0, 7), (10, 2, 3)])
    one = record(slot, ABI_X86_64.response(7, 1, -1), detail=10)
    line = entry(1, one, 1_000, decode("x86_64-abi", one))
    assert line == {
        "ring": 1, "index": 3, "time": 1e-6, "latency": 3e-6, "op": "write", "id": 7,
        "sector": 2048, "sectors": 10, "nr_segments": 2, "segments": [[9, 0, 7], [10, 2, 3]],
        "status": "error", "request": slot.hex(),
        "response": ABI_X86_64.response(7, 1, -1).hex(),
    }  # fmt: skip
    head, (request,), end = read(file_of(HEAD.line(), line, tail(1, 2, 1.5)))
    assert head == HEAD
    assert (request.ring, request.time, request.fields) == (1, 1e-6, line)
    assert end == {"end": True, "requests": 1, "lost": 2, "seconds": 1.5}


REQUEST = {"ring": 0, "index": 0, "time": 0.1, "latency": 0.1, "op": "flush", "status": "okay"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "an empty file"),
        ([{}], "line 1 is no head"),
        ([{**HEAD.line(), "capture": 2}], "line 1 is no head of a capture that this xenpy reads"),
        ([{**HEAD.line(), "rings": "two"}], "line 1 says no number of rings"),
        ([HEAD.line()], "no end after 0 requests: it was cut off"),
        ([HEAD.line(), REQUEST], "no end after 1 requests"),
        ([HEAD.line(), [1]], "line 2 is no line of a capture"),
        ([HEAD.line(), REQUEST, {**REQUEST, "time": "now"}], "line 3 is no request"),
        ([HEAD.line(), {"x": "y" * 70_000}], "line 2 is no line of a capture"),
    ],
)
def test_what_is_no_capture_is_refused(lines: list[object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(file_of(*lines))


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2 is no line of a capture"):
        read(io.StringIO(json.dumps(HEAD.line()) + "\n{\n"))


@pytest.mark.parametrize(
    "changes",
    [
        {"op": "nothing"}, {"op": "operation-256"}, {"op": None}, {"op": "read", "sector": -1},
        {"op": "read", "sector": "0"}, {"op": "discard", "flag": 256},
        {"op": "write", "nr_segments": 300, "indirect": []}, {"op": "read", "sector": 1 << 64},
        {"op": "read", "nr_segments": 1, "segments": [[1, 2]]},
        {"op": "read", "nr_segments": 1, "segments": [[1, 2, 256]]},
    ],
)  # fmt: skip
def test_a_line_that_is_no_request_to_a_disk_is_refused(changes: dict[str, object]) -> None:
    _, (request,), _ = read(file_of(HEAD.line(), {**REQUEST, **changes}, tail(1, 0, 1.0)))
    with pytest.raises(ValueError, match=r" is |segments of an indirect"):
        shape_of(request)


@given(st.binary(min_size=112, max_size=112), st.binary(min_size=16, max_size=16), st.booleans())
def test_whatever_a_guest_wrote_can_be_shown_and_asked_for_again(
    request: bytes, response: bytes, narrow: bool
) -> None:
    layout = ABI_X86_32 if narrow else ABI_X86_64
    one = record(request, response, detail=5)
    line = entry(0, one, 0, decode(layout.name, one))
    _, (again,), _ = read(file_of(HEAD.line(), line, tail(1, 0, 1.0)))
    count = line.get("nr_segments", 0)
    assert isinstance(count, int)
    if "indirect" in line and count > 256:
        return  # refused: a test above
    shape = shape_of(again)
    assert (shape.sector, shape.nr_segments) == (line["sector"], count)
    assert len(shape.spans) == (count if shape.indirect else min(count, 11))
