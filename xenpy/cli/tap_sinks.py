# SPDX-License-Identifier: MIT
"""Where `xenpy tap` puts its records: into a capture, or decoded before somebody's eyes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol

from xenpy.capture import ENTRY, Head, Tail, entry
from xenpy.cli.common import installed_driver
from xenpy.cli.errors import UsageError
from xenpy.cli.own import protocol_in
from xenpy.driver import Decode, nothing
from xenpy.own_trace import own_decode
from xenpy.trace import RECORD, TraceRecord

__all__ = ["Shown", "Sink", "decode_of"]


class Sink(Protocol):
    """Where records go."""

    def add(self, ring: int, records: bytes | memoryview) -> None: ...
    def end(self, tail: Tail) -> None: ...


class Shown:
    """Decoded, as JSON or for people."""

    def __init__(self, head: Head, decode: Decode, *, as_json: bool) -> None:
        self._head = head
        self._decode = decode
        self._put = _put_json if as_json else _put_text
        self._put(head.line())

    def add(self, ring: int, records: bytes | memoryview) -> None:
        for row in RECORD.iter_unpack(records):
            record = TraceRecord._make(row)
            fields = self._decode(self._head.layout, record)
            self._put(entry(ring, record, self._head.start, fields))

    def end(self, tail: Tail) -> None:
        self._put(tail.line())


def decode_of(head: Head, file: str | None) -> Decode:
    """What understands a capture; of a driver that is not installed here only bytes are known.

    Args:
        file: FILE.py, of a protocol of somebody's own.

    Raises:
        UsageError: there is none in it, or it is another one than the capture's.
    """
    if file is None:
        try:
            return installed_driver(head.driver).decode
        except UsageError:
            return nothing
    protocol, _ = protocol_in(file)
    if protocol.name != head.driver:
        raise UsageError(f"{file} is of {protocol.name}, and {head.device} speaks {head.driver}")
    return own_decode(protocol)


def _put_json(line: Mapping[str, object]) -> None:
    print(json.dumps(line), flush=True)


def _put_text(line: Mapping[str, object]) -> None:
    """A line for people; head and tail are said elsewhere."""
    if "ring" not in line:
        return
    time, latency = line["time"], line["latency"]
    assert isinstance(time, float | int)
    assert isinstance(latency, float | int)
    text = f"{time:12.6f} {line['ring']!s:>2}/{line['index']:<8}{_what(line)}"
    print(f"{text} {latency * 1e3:9.3f} ms", flush=True)


def _what(line: Mapping[str, object]) -> str:
    if isinstance(line.get("op"), str):
        what = f"{line['op']!s:8}"
        if line.get("sectors") or line["op"] in ("read", "write"):
            what += f" {line.get('sectors')!s:>5} sectors at {line.get('sector')}"
        more = [f"{name} {line[name]}" for name in ("nr_segments", "flag") if name in line]
        return f"{what:40} {', '.join(more):16} {line['status']!s:12}"
    known = [f"{name} {value}" for name, value in line.items() if name not in ENTRY]
    return f"{', '.join(known):69}" if known else f"{line['request']} -> {line['response']}"
