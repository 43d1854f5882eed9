# SPDX-License-Identifier: MIT
"""`replay,capture=FILE`: a disk that answers as another one did, by a capture of `xenpy tap`.

A request that the capture has, the nth of its kind at its place, gets that one's status, and no
sooner than that one did.  All others are the store's alone.

How long one took is counted from the answer before it, if that came later than the request: a
queue calls a filter for one request after the other, so that a wait in the queue comes about by
itself, here as there.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from xenpy.backend import DeviceError
from xenpy.capture import Capture
from xenpy.drivers.block.filters.base import Around, FilterPlace, Operation
from xenpy.drivers.block.protocol import SECTOR_SHIFT
from xenpy.drivers.block.store import Store
from xenpy.drivers.block.trace_text import decode
from xenpy.trace import TraceRecord
from xenpy.words import Words

__all__ = ["Replay", "ReplayFilter"]

OPERATIONS: Final = {
    "read": Operation.READ, "write": Operation.WRITE, "flush": Operation.FLUSH,
    "discard": Operation.DISCARD,
}  # fmt: skip
"""By what `trace_text.decode` calls them; a barrier is three calls, and is left out."""
NUMBERS: Final = {"okay": 0, "eopnotsupp": errno.EOPNOTSUPP}
NANOSECONDS: Final = 1e9
LIMIT: Final = 60.0
"""Seconds: a disconnect waits for what sleeps."""


class Answer(NamedTuple):
    """Attributes:
    seconds: how long it took.
    number: an errno; 0 is success.
    """

    seconds: float
    number: int


class Place(NamedTuple):
    """What is asked for, in bytes."""

    operation: Operation
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Replay:
    """The words.

    Attributes:
        capture: the file, read when the disk is attached.
        late: whether answers come as late as in the capture.
    """

    capture: str
    late: bool
    lower_readonly: bool = False

    @classmethod
    def parse(cls, words: Words) -> Replay:
        capture = words.text("capture")
        late = words.choice("latency", ["yes", "no"], "yes") == "yes"
        words.end()
        if not capture.startswith("/"):
            raise ValueError(f"replay: capture is {capture!r}; give capture=/an/absolute/one")
        return cls(capture, late)

    def wrap(self, lower: Store, place: FilterPlace) -> Store:
        with Path(self.capture).open("rb") as file:
            try:
                capture = Capture(file)
                if capture.head.driver != "block":
                    raise ValueError(f"a capture of {capture.head.device}, which is no disk")
                answers = _answers(capture.head.layout, capture, late=self.late)
            except ValueError as error:
                raise DeviceError(f"{self.capture}: {error}") from error
        return ReplayFilter(lower, answers)


class ReplayFilter(Around):
    """Answers as it is told, each answer once.

    Counts `replay_answers`, those that it has given, and `replay_others`, the calls that it had
    none for.
    """

    def __init__(self, lower: Store, answers: Mapping[Place, deque[Answer]]) -> None:
        super().__init__(lower)
        self._answers = answers
        self._turn = threading.Lock()
        self._given = 0
        self._others = 0

    def around(
        self, operation: Operation, offset: int, length: int, call: Callable[[], None]
    ) -> None:
        begun = time.monotonic()
        answer = self._next(Place(operation, offset, length))
        if answer is None:
            call()
            return
        try:
            if answer.number:
                raise OSError(answer.number, f"{os.strerror(answer.number)} (replay filter)")
            call()
        finally:
            if (left := begun + answer.seconds - time.monotonic()) > 0:
                time.sleep(left)

    def stats(self) -> Mapping[str, int]:
        with self._turn:
            counts = {"replay_answers": self._given, "replay_others": self._others}
        return {**super().stats(), **counts}

    def _next(self, place: Place) -> Answer | None:
        with self._turn:
            if left := self._answers.get(place):
                self._given += 1
                return left.popleft()
            self._others += 1
            return None


def _answers(
    layout: str, records: Iterable[tuple[int, TraceRecord]], *, late: bool
) -> Mapping[Place, deque[Answer]]:
    """What a capture has of each kind of request, in the order in which they were taken."""
    found: dict[Place, list[tuple[int, Answer]]] = {}
    # A ring's records are in the order of their answers.
    before: dict[int, int] = {}
    for ring, record in records:
        fields = decode(layout, record)
        took = record.answered - max(record.taken, before.get(ring, 0))
        before[ring] = record.answered
        place = _place(fields)
        if place is not None:
            seconds = min(max(took, 0) / NANOSECONDS, LIMIT) if late else 0.0
            number = NUMBERS.get(str(fields["status"]), errno.EIO)
            found.setdefault(place, []).append((record.taken, Answer(seconds, number)))
    return {
        place: deque(answer for _, answer in sorted(some, key=lambda one: one[0]))
        for place, some in found.items()
    }


def _place(fields: Mapping[str, object]) -> Place | None:
    operation = OPERATIONS.get(str(fields["op"]))
    # Of an indirect request that was refused, or only looked at, nobody has counted the sectors.
    match operation, fields["sector"], fields.get("sectors"):
        case None, _, _:
            return None
        case Operation.FLUSH, _, _:
            return Place(Operation.FLUSH, 0, 0)
        case Operation(), int(sector), int(sectors):
            return Place(operation, sector << SECTOR_SHIFT, sectors << SECTOR_SHIFT)
        case _:
            return None
