# SPDX-License-Identifier: MIT
"""A capture: what `xenpy tap` writes, and it and `xenpy replay` read.

A line of JSON, the head; then chunks, each a ring's number, a count and so many records as they
were in memory (`trace.RECORD`); then a chunk that is none, with a line of JSON: how it ended.
Nothing is decoded while it is written (docs/design/tap.md has what that costs).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import IO, Final

from xenpy.driver import Value
from xenpy.trace import RECORD, REQUEST_LIMIT, RESPONSE_LIMIT, TraceRecord

__all__ = ["ENTRY", "Capture", "Head", "Tail", "Writer", "entry"]

VERSION: Final = 1
HEAD_LIMIT: Final = 4096
CHUNK: Final = struct.Struct("<II")
"""A ring's number, and how many records follow."""
NO_RING: Final = 0xFFFF_FFFF
"""In the last chunk, whose count is the length of the tail."""
RECORDS_LIMIT: Final = 1 << 16
"""Of one chunk."""
NANOSECONDS: Final = 1e9
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*", re.ASCII | re.IGNORECASE)
"""A driver's."""
ENTRY: Final = ("ring", "index", "time", "latency", "request", "response")
"""What `entry` has beside the fields."""


@dataclass(frozen=True, slots=True)
class Head:
    """Of whom a capture is.

    Attributes:
        device: KIND/DOMID/DEVID.
        driver: what `xenpy serve` calls the driver.
        layout: see `backend.Recorded`.
        rings: how many.
        start: ns of CLOCK_MONOTONIC: when it began.
        exact: the engine recorded.  Otherwise somebody looked at the ring now and then.
        interval: between two looks, in seconds; None if it is exact.
    """

    device: str
    driver: str
    layout: str
    rings: int
    start: int = 0
    exact: bool = True
    interval: float | None = None

    def __str__(self) -> str:
        rings = f"{self.rings} ring{'s' if self.rings > 1 else ''}"
        how = "exact" if self.exact else f"passive, every {self.interval} s"
        return f"{self.device}: {rings}, {how}"

    def line(self) -> Mapping[str, object]:
        """As JSON has it."""
        return {"capture": VERSION, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Tail:
    """How a capture ended.

    Attributes:
        requests: in it.
        lost: those that are not.
        seconds: from its start.
    """

    requests: int
    lost: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.requests} requests, {self.lost} lost, in {self.seconds:.1f} s"

    def line(self) -> Mapping[str, object]:
        """As JSON has it."""
        return {"end": True, **asdict(self), "seconds": round(self.seconds, 3)}


def entry(
    ring: int, record: TraceRecord, start: int, fields: Mapping[str, Value]
) -> Mapping[str, object]:
    """One request as JSON has it.

    Args:
        start: of the capture.
        fields: what `Driver.decode` says; one that has the name of something else in the line
            is called `NAME_`.
    """
    return {
        "ring": ring,
        "index": record.position,
        "time": round((record.taken - start) / NANOSECONDS, 9),
        "latency": round((record.answered - record.taken) / NANOSECONDS, 9),
        **{f"{name}_" if name in ENTRY else name: value for name, value in fields.items()},
        "request": record.request[: min(record.request_size, REQUEST_LIMIT)].hex(),
        "response": record.response[: min(record.response_size, RESPONSE_LIMIT)].hex(),
    }


class Writer:
    """Writes a capture, head first; `end` is the caller's to call."""

    def __init__(self, file: IO[bytes], head: Head) -> None:
        self._file = file
        file.write(json.dumps(head.line()).encode() + b"\n")

    def add(self, ring: int, records: bytes | memoryview) -> None:
        """Records of a ring, one after the other."""
        self._file.write(CHUNK.pack(ring, len(records) // RECORD.size))
        self._file.write(records)

    def end(self, tail: Tail) -> None:
        text = json.dumps(tail.line()).encode() + b"\n"
        self._file.write(CHUNK.pack(NO_RING, len(text)) + text)
        self._file.flush()


class Capture:
    """A capture that is read.

    Attributes:
        head: as it was written.
        tail: once all records have been read.

    Raises:
        ValueError: that is no capture; the text says why.  So does reading to the end, if it was
            cut off.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.head = _head(file.readline(HEAD_LIMIT))
        self.tail: Tail | None = None

    def __iter__(self) -> Iterator[tuple[int, TraceRecord]]:
        """The ring and the record of each request, in the order in which they were written."""
        for ring, content in self.chunks():
            for row in RECORD.iter_unpack(content):
                yield ring, TraceRecord._make(row)

    def chunks(self) -> Generator[tuple[int, bytes]]:
        """The ring and the records of each chunk."""
        while True:
            ring, count = CHUNK.unpack(self._exactly(CHUNK.size))
            if ring == NO_RING:
                self.tail = _tail(self._exactly(min(count, HEAD_LIMIT)))
                return
            if ring >= self.head.rings or not 0 < count <= RECORDS_LIMIT:
                raise ValueError(f"{count} records of ring {ring}, in a capture of {self.head}")
            yield ring, self._exactly(count * RECORD.size)

    def _exactly(self, count: int) -> bytes:
        content = self._file.read(count)
        if len(content) < count:
            raise ValueError("the capture has no end: it was cut off")
        return content


def _object(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _head(line: bytes) -> Head:
    match _object(line):
        case {
            "capture": int(version), "device": str(device), "driver": str(driver),
            "layout": str(layout), "rings": int(rings), "start": int(start),
            "exact": bool(exact), "interval": float() | None as interval,
        } if version == VERSION and 0 < rings < NO_RING:  # fmt: skip
            if not NAME.fullmatch(driver):
                # Such as a file's, whose code would be the capture's word for what it has.
                raise ValueError(
                    f"{driver!r}, of which the capture says it is, is no driver's name"
                )
            return Head(device, driver, layout, rings, start, exact, interval)
        case _:
            raise ValueError("that is no capture, or one of another version of xenpy")


def _tail(line: bytes) -> Tail:
    match _object(line):
        case {"requests": int(requests), "lost": int(lost), "seconds": float(seconds)}:
            return Tail(requests, lost, seconds)
        case _:
            raise ValueError("the capture's end makes no sense")
