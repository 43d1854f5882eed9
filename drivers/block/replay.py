# SPDX-License-Identifier: MIT
"""A capture of one disk fed to another: the same requests, and whether the answers are the same.

Of the same shape, down to the sectors of each page; what is written is a pattern, since a capture
has no data.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from xenpy.capture import Captured
from xenpy.drivers.block.front import BlockDevice
from xenpy.drivers.block.front_queue import Shape
from xenpy.drivers.block.protocol import (
    MAX_INDIRECT_SEGMENTS,
    MAX_SEGMENTS,
    OP_DISCARD,
    RSP_EOPNOTSUPP,
    RSP_ERROR,
    RSP_OKAY,
)
from xenpy.drivers.block.trace_text import OPERATIONS, STATUSES
from xenpy.errors import XenError

__all__ = ["Difference", "Replayed", "replay", "shape_of", "writes"]

NUMBERS: Final = {name: number for number, name in OPERATIONS.items()}
SECTORS_OF_PAGE: Final = 8
STATUS_OF: Final = {errno.EIO: RSP_ERROR, errno.EOPNOTSUPP: RSP_EOPNOTSUPP}
EXAMPLES: Final = 10


@dataclass(frozen=True, slots=True)
class Difference:
    """A request that was answered in another way than in the capture."""

    request: Captured
    status: str


@dataclass(slots=True)
class Replayed:
    """
    Attributes:
        requests: answered.
        same: with the status of the capture.
        examples: of those with another, the first ones.
        seconds: from the first to the last.
    """

    requests: int = 0
    same: int = 0
    examples: list[Difference] = field(default_factory=list[Difference])
    seconds: float = 0.0


def _number(fields: Mapping[str, object], name: str, limit: int) -> int:
    value = fields.get(name, 0)
    if not isinstance(value, int) or not 0 <= value < limit:
        raise ValueError(f"{name} is {value!r}")
    return value


def shape_of(request: Captured) -> Shape:
    """What to put into a ring.

    Raises:
        ValueError: the line is no request to a disk.
    """
    fields = request.fields
    op = str(fields.get("op"))
    number = op.removeprefix("operation-")
    if op not in NUMBERS and not (number.isdecimal() and int(number) < 256):
        raise ValueError(f"op is {op[:40]!r}")
    operation = NUMBERS[op] if op in NUMBERS else int(number)
    sector = _number(fields, "sector", 1 << 64)
    sectors = _number(fields, "sectors", 1 << 64)
    if operation == OP_DISCARD:
        flag = _number(fields, "flag", 256)
        return Shape(operation, sector, sectors=sectors, flag=flag)
    count = _number(fields, "nr_segments", 1 << 16)
    if "indirect" in fields:
        if count > MAX_INDIRECT_SEGMENTS:
            # Refused as more than was offered; a frontend of ours has not the pages either.
            raise ValueError(f"{count} segments of an indirect request")
        return Shape(operation, sector, _spread(sectors, count), count, indirect=True)
    return Shape(operation, sector, _spans(fields.get("segments")), count)


def _spans(segments: object) -> Sequence[tuple[int, int]]:
    rows: Sequence[object] = segments if isinstance(segments, list) else ()
    spans: list[tuple[int, int]] = []
    for row in rows[:MAX_SEGMENTS]:
        match row:
            case [int(), int(first), int(last)] if 0 <= first < 256 and 0 <= last < 256:
                spans.append((first, last))
            case _:
                raise ValueError(f"a segment is {row!r}")
    return spans


def _spread(sectors: int, count: int) -> Sequence[tuple[int, int]]:
    """So many sectors in so many pages; where in them they were, a capture does not say."""
    spans: list[tuple[int, int]] = []
    for left in range(count, 0, -1):
        some = max(1, min(SECTORS_OF_PAGE, sectors - (left - 1)))
        spans.append((0, some - 1))
        sectors -= some
    return spans


def writes(requests: Sequence[Captured]) -> bool:
    """Whether any of them changes what is on the disk."""
    return any(one.fields.get("op") in ("write", "barrier", "discard") for one in requests)


async def replay(
    disk: BlockDevice, requests: Sequence[Captured], *, depth: int, pace: bool
) -> Replayed:
    """Ask for all of them, in the order in which they were taken.

    Args:
        depth: how many are under way at most.
        pace: not before the time at which each was taken.

    Raises:
        ValueError: one of them is no request to a disk; nothing of it was asked for.
        XenError, PeerError: as `BlockDevice`: the disk is gone.
    """
    shapes = [shape_of(request) for request in requests]
    order = sorted(range(len(requests)), key=lambda number: requests[number].time)
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(depth)
    done = Replayed()
    begin = loop.time()
    zero = requests[order[0]].time if order else 0.0

    async def answered(number: int, answer: asyncio.Future[None]) -> None:
        try:
            _compare(done, requests[number], await _status(answer))
        finally:
            room.release()

    async with asyncio.TaskGroup() as group:
        for number in order:
            if pace:
                await asyncio.sleep(begin + requests[number].time - zero - loop.time())
            await room.acquire()
            answer = await disk.front.link.idlest().repeat(shapes[number])
            group.create_task(answered(number, answer))
    done.seconds = loop.time() - begin
    return done


async def _status(answer: asyncio.Future[None]) -> int:
    try:
        await answer
    except XenError as error:
        if error.errno not in STATUS_OF:
            raise
        return STATUS_OF[error.errno]
    return RSP_OKAY


def _compare(done: Replayed, request: Captured, status: int) -> None:
    done.requests += 1
    if STATUSES[status] == request.fields.get("status"):
        done.same += 1
    elif len(done.examples) < EXAMPLES:
        done.examples.append(Difference(request, STATUSES[status]))
