# SPDX-License-Identifier: MIT
"""A capture: what `xenpy tap` writes and `xenpy replay` reads.

Lines of JSON, so that jq and grep read it as well: a head, a line for each request in the order in
which they were answered, an end.  A capture without its end was cut off.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final

from xenpy.driver import Value
from xenpy.trace import REQUEST_LIMIT, TraceRecord

__all__ = ["Captured", "Head", "entry", "read", "tail"]

VERSION: Final = 1
LINE_LIMIT: Final = 1 << 16
NANOSECONDS: Final = 1e9


@dataclass(frozen=True, slots=True)
class Head:
    """Of whom a capture is.

    Attributes:
        device: KIND/DOMID/DEVID.
        driver: what `xenpy serve` calls the driver.
        layout: see `backend.Recorded`.
        rings: how many.
        exact: the engine recorded.  Otherwise somebody looked at the ring now and then.
        interval: between two looks, in seconds; None if it is exact.
    """

    device: str
    driver: str
    layout: str
    rings: int
    exact: bool = True
    interval: float | None = None

    def __str__(self) -> str:
        rings = f"{self.rings} ring{'s' if self.rings > 1 else ''}"
        how = "exact" if self.exact else f"passive, every {self.interval} s"
        return f"{self.device}: {rings}, {how}"

    def line(self) -> Mapping[str, object]:
        return {
            "capture": VERSION, "device": self.device, "driver": self.driver,
            "layout": self.layout, "rings": self.rings, "exact": self.exact,
            "interval": self.interval,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Captured:
    """A request and its answer.

    Attributes:
        ring: its number.
        time: seconds from the start of the capture to when the request was taken.
        fields: what `Driver.decode` said.
    """

    ring: int
    time: float
    fields: Mapping[str, object]


def entry(
    ring: int, record: TraceRecord, start: int, fields: Mapping[str, Value]
) -> Mapping[str, object]:
    """The line of one request.

    Args:
        start: ns of CLOCK_MONOTONIC at the start of the capture.
    """
    return {
        "ring": ring,
        "index": record.position,
        "time": round((record.taken - start) / NANOSECONDS, 9),
        "latency": round((record.answered - record.taken) / NANOSECONDS, 9),
        **fields,
        "request": record.request[: min(record.request_size, REQUEST_LIMIT)].hex(),
        "response": record.response[: record.response_size].hex(),
    }


def tail(requests: int, lost: int, seconds: float) -> Mapping[str, object]:
    """The last line."""
    return {"end": True, "requests": requests, "lost": lost, "seconds": round(seconds, 3)}


def read(file: IO[str]) -> tuple[Head, Sequence[Captured], Mapping[str, object]]:
    """A whole capture: its head, its requests in the order of the file, and its last line.

    Raises:
        ValueError: it is none, or was cut off; the text says where.
    """
    lines = _objects(file)
    try:
        head = _head(next(lines))
    except StopIteration:
        raise ValueError("an empty file is no capture") from None
    requests: list[Captured] = []
    for number, line in enumerate(lines, 2):
        if "end" in line:
            return head, requests, line
        requests.append(_request(number, line))
    raise ValueError(f"the capture has no end after {len(requests)} requests: it was cut off")


def _objects(file: Iterable[str]) -> Generator[dict[str, object]]:
    for number, text in enumerate(file, 1):
        try:
            found: object = json.loads(text) if len(text) <= LINE_LIMIT else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"line {number} is no line of a capture")
        yield found


def _head(line: Mapping[str, object]) -> Head:
    if line.get("capture") != VERSION:
        raise ValueError("line 1 is no head of a capture that this xenpy reads")
    rings = line.get("rings")
    if not isinstance(rings, int):
        raise ValueError("line 1 says no number of rings")
    device, driver, layout = (str(line.get(name, "")) for name in ("device", "driver", "layout"))
    return Head(device, driver, layout, rings, exact=line.get("exact") is True)


def _request(number: int, line: Mapping[str, object]) -> Captured:
    ring, time = line.get("ring"), line.get("time")
    if not isinstance(ring, int) or not isinstance(time, int | float):
        raise ValueError(f"line {number} is no request of a capture")
    return Captured(ring, float(time), line)
