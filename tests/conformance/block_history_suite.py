# SPDX-License-Identifier: MIT
"""Random histories of every operation against a plain model: goes with `block_suite`, whose
fixtures it uses."""

from __future__ import annotations

import random

import pytest

from conformance.block_front import Blkfront, BlockEnvironment, Served, connected
from conformance.block_suite import CONTENT, DISK_SECTORS, both_ways
from xenpy.drivers.block.protocol import (
    ABI_X86_32,
    ABI_X86_64,
    MAX_INDIRECT_SEGMENTS,
    MAX_SEGMENTS,
    OP_DISCARD,
    OP_FLUSH_DISKCACHE,
    OP_READ,
    OP_WRITE,
    OP_WRITE_BARRIER,
    RSP_OKAY,
    Abi,
)
from xenpy.types import PAGE_SIZE

DATA_PAGES = 128
MAY_BE_EMPTY = (OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER)
OPERATIONS = (OP_READ, OP_READ, OP_WRITE, OP_WRITE, OP_DISCARD, *MAY_BE_EMPTY)


class History:
    """Makes batches of requests that do not overlap, and says what each must come to."""

    def __init__(self, front: Blkfront, rng: random.Random) -> None:
        self.front = front
        self.rng = rng
        self.disk = bytearray(CONTENT)
        self.slots: list[bytes] = []
        self.expected: dict[int, list[tuple[int, bytes]]] = {}
        self.counts = {"indirect": 0, "rd_req": 0, "wr_req": 0, "f_req": 0, "ds_req": 0}

    def batch(self) -> None:
        """Fill the ring."""
        self.slots, self.expected = [], {}
        pages = self.rng.sample(range(DATA_PAGES), DATA_PAGES)
        taken: set[int] = set()
        tables = 0
        while len(self.slots) < self.front.ring.free and len(pages) > 1:
            operation = self.rng.choice(OPERATIONS)
            indirect = operation in (OP_READ, OP_WRITE) and tables < 4 and self.rng.random() < 0.3
            segments = self._segments(operation, pages, indirect=indirect)
            sectors = sum(last - first + 1 for _, first, last in segments)
            if operation == OP_DISCARD:
                sectors = self.rng.randrange(1, 64)
            start = self.rng.randrange(DISK_SECTORS - sectors + 1)
            span = set(range(start, start + sectors))
            if span & taken:
                # No two of a batch overlap: blkif promises no order among them.
                continue
            taken |= span
            del pages[: len(segments)]
            self._add(operation, start, sectors, segments, table=tables if indirect else None)
            tables += indirect

    def _segments(
        self, operation: int, pages: list[int], *, indirect: bool
    ) -> list[tuple[int, int, int]]:
        if operation == OP_DISCARD:
            return []
        most = MAX_INDIRECT_SEGMENTS if indirect else MAX_SEGMENTS
        least = 0 if operation in MAY_BE_EMPTY else 1
        count = self.rng.randrange(least, min(most, len(pages), 40) + 1)
        segments: list[tuple[int, int, int]] = []
        for page in pages[:count]:
            first = self.rng.randrange(8)
            segments.append((page, first, self.rng.randrange(first, 8)))
        return segments

    def _add(
        self,
        operation: int,
        start: int,
        sectors: int,
        segments: list[tuple[int, int, int]],
        *,
        table: int | None,
    ) -> None:
        front, data = self.front, self.rng.randbytes(sectors * 512)
        if operation == OP_READ:
            data = bytes(self.disk[start * 512 : (start + sectors) * 512])
        elif operation == OP_DISCARD:
            data = bytes(sectors * 512)
        self.disk[start * 512 : (start + sectors) * 512] = data
        pieces: list[tuple[int, bytes]] = []
        done = 0
        for page, first, last in segments:
            length = (last - first + 1) * 512
            place, piece = page * PAGE_SIZE + first * 512, data[done : done + length]
            front.poke(place, self.rng.randbytes(length) if operation == OP_READ else piece)
            pieces.append((place, piece))
            done += length
        granted = [(front.refs[page], first, last) for page, first, last in segments]
        if operation == OP_DISCARD:
            ident = 10**9 + start
            slot = front.abi.pack_discard(ident, start, sectors)
        elif table is not None:
            ident, slot = front.indirect(operation, start, granted, table=table)
        else:
            ident, slot = front.request(operation, start, granted)
        self.slots.append(slot)
        self.expected[ident] = pieces
        kind = {OP_READ: "rd_req", OP_WRITE: "wr_req", OP_DISCARD: "ds_req"}.get(operation)
        self.counts[kind or "f_req"] += 1
        self.counts["indirect"] += table is not None


@both_ways
@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("abi", [ABI_X86_64, ABI_X86_32], ids=lambda abi: abi.name)
def test_a_random_history_leaves_what_a_model_says(
    env: BlockEnvironment, served: Served, abi: Abi, persistent: bool, order: int
) -> None:
    """Rings full of requests of every kind, many times round; each batch's answers, the
    guest's pages and the whole image."""
    front = Blkfront(
        env, abi=abi, order=order, data_pages=DATA_PAGES, table_pages=4, persistent=persistent
    )
    history = History(front, random.Random(3))
    with connected(front, served):
        for _ in range(24):
            history.batch()
            responses = front.ask(history.slots)
            assert {response.id for response in responses} == set(history.expected)
            assert all(response.status == RSP_OKAY for response in responses)
            for pieces in history.expected.values():
                for place, piece in pieces:
                    assert front.peek(place, len(piece)) == piece
        stats = served.stats()
    assert served.image.read_bytes() == bytes(history.disk)
    assert {name: stats[name] for name in history.counts} == history.counts
    assert min(history.counts.values()) > 10
    assert stats["errors"] == 0
    assert stats["notifications"] <= stats["batches"]
    front.close()
