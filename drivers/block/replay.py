# SPDX-License-Identifier: MIT
"""A capture of one disk fed to another: the same requests, and whether the answers are the same.

Of the same shape, down to the sectors of each page; what is written is a pattern, since a capture
has no data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from xenpy.driver import Value
from xenpy.drivers.block.front import BlockDevice
from xenpy.drivers.block.front_queue import ERRORS, Shape
from xenpy.drivers.block.protocol import (
    ABI_NATIVE,
    ABIS,
    MAX_INDIRECT_SEGMENTS,
    MAX_SEGMENTS,
    OP_DISCARD,
    OP_INDIRECT,
    RSP_OKAY,
    SEGMENT_SIZE,
    Abi,
)
from xenpy.drivers.block.trace_text import STATUSES, decode
from xenpy.errors import XenError
from xenpy.trace import TraceRecord

__all__ = ["Difference", "Replayed", "Wanted", "replay", "wanted"]

NANOSECONDS: Final = 1e9
SECTORS_OF_PAGE: Final = 8
STATUS_OF: Final = {number: status for status, number in ERRORS.items()}
EXAMPLES: Final = 10


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to ask for, and what to expect.

    Attributes:
        taken: when the captured one was, in ns.
        fields: what `trace_text.decode` said of it.
    """

    taken: int
    shape: Shape
    fields: Mapping[str, Value]

    @property
    def writes(self) -> bool:
        """Whether it changes what is on the disk."""
        return self.fields["op"] in ("write", "barrier", "discard")


@dataclass(frozen=True, slots=True)
class Difference:
    """A request that was answered in another way than in the capture."""

    request: Wanted
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


def wanted(layout: str, record: TraceRecord) -> Wanted:
    """What a record asks for.

    Args:
        layout: of its capture.

    Raises:
        ValueError: it is a request that no frontend of ours can make.
    """
    fields = decode(layout, record)
    return Wanted(record.taken, _shape(record, ABIS.get(layout, ABI_NATIVE)), fields)


def _shape(record: TraceRecord, abi: Abi) -> Shape:
    slot = record.request
    operation, count, _, _, sector = abi.header.unpack(slot)
    if operation == OP_DISCARD:
        _, flag, _, _, _, sectors = abi.discard.unpack(slot)
        return Shape(operation, sector, sectors=sectors, flag=flag)
    if operation == OP_INDIRECT:
        _, operation, count, _, sector, *_ = abi.indirect.unpack(slot)
        if count > MAX_INDIRECT_SEGMENTS:
            # Refused as more than was offered; a frontend of ours has not the pages either.
            raise ValueError(f"request {record.position} has {count} indirect segments")
        spans = _spread(record.detail, count)
        return Shape(operation, sector, spans, count, indirect=True)
    end = abi.header.size + min(count, MAX_SEGMENTS) * SEGMENT_SIZE
    parts = abi.segment.iter_unpack(slot[abi.header.size : end])
    return Shape(operation, sector, [(first, last) for _, first, last in parts], count)


def _spread(sectors: int, count: int) -> Sequence[tuple[int, int]]:
    """So many sectors in so many pages; where in them they were, a capture does not say."""
    spans: list[tuple[int, int]] = []
    for left in range(count, 0, -1):
        some = max(1, min(SECTORS_OF_PAGE, sectors - (left - 1)))
        spans.append((0, some - 1))
        sectors -= some
    return spans


async def replay(
    disk: BlockDevice, requests: Sequence[Wanted], *, depth: int, pace: bool
) -> Replayed:
    """Ask for all of them, in the order in which they were taken.

    Args:
        depth: how many are under way at most.
        pace: not before the time at which each was taken.

    Raises:
        XenError, PeerError: as `BlockDevice`: the disk is gone, or does not answer.
    """
    order = sorted(requests, key=lambda request: request.taken)
    loop = asyncio.get_running_loop()
    room = asyncio.Semaphore(depth)
    done = Replayed()
    begin = loop.time()

    async def answered(request: Wanted, answer: asyncio.Future[None]) -> None:
        try:
            _compare(done, request, await _status(disk, answer))
        finally:
            room.release()

    try:
        async with asyncio.TaskGroup() as group:
            for request in order:
                if pace:
                    passed = (request.taken - order[0].taken) / NANOSECONDS
                    await asyncio.sleep(begin + passed - loop.time())
                await room.acquire()
                answer = await disk.front.link.idlest().repeat(request.shape)
                group.create_task(answered(request, answer))
    except BaseExceptionGroup as errors:
        # What ended the disk, said by each request that was under way.
        raise errors.exceptions[0] from None
    done.seconds = loop.time() - begin
    return done


async def _status(disk: BlockDevice, answer: asyncio.Future[None]) -> int:
    try:
        await disk.answered([answer])
    except XenError as error:
        if error.errno not in STATUS_OF:
            raise
        return STATUS_OF[error.errno]
    return RSP_OKAY


def _compare(done: Replayed, request: Wanted, status: int) -> None:
    done.requests += 1
    if STATUSES[status] == request.fields["status"]:
        done.same += 1
    elif len(done.examples) < EXAMPLES:
        done.examples.append(Difference(request, STATUSES[status]))
