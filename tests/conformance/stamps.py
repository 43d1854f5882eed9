# SPDX-License-Identifier: MIT
"""What a writer may rely on: blocks with stamps, and a ledger of what was acknowledged.

A block holds nothing but copies of its stamp: its own number and which write it was.  So a block
that is torn, stale or another's is told from a good one.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping

__all__ = ["BLOCK", "Ledger", "read_stamp", "stamp"]

BLOCK = 4096
_STAMP = struct.Struct("<QQ")


def stamp(block: int, turn: int) -> bytes:
    """The content of a block that write number `turn` wrote; turn 0 is all zeros."""
    return _STAMP.pack(block, turn) * (BLOCK // _STAMP.size) if turn else bytes(BLOCK)


def read_stamp(block: int, content: bytes) -> int:
    """Which write a block's content is from.  AssertionError: from none, or from several."""
    turn: int = _STAMP.unpack_from(content)[1]
    assert content == stamp(block, turn), f"block {block} is torn, or another's: {content[:32]!r}"
    return turn


class Ledger:
    """What each block must hold at least, and what it may hold.

    Args:
        blocks: of the disk.
        seed: of the choice of blocks.
    """

    def __init__(self, blocks: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.blocks = blocks
        self.turn = 0
        self.flushes = 0
        self._issued = [0] * blocks
        self._acknowledged = [0] * blocks
        self._durable = [0] * blocks

    def choose(self, count: int) -> dict[int, bytes]:
        """The content of that many writes to different blocks, which count as issued."""
        chosen: dict[int, bytes] = {}
        for block in self.rng.sample(range(self.blocks), count):
            self.turn += 1
            self._issued[block] = self.turn
            chosen[block] = stamp(block, self.turn)
        return chosen

    def acknowledge(self, written: Mapping[int, bytes]) -> None:
        """These writes were answered."""
        for block, content in written.items():
            self._acknowledged[block] = max(self._acknowledged[block], read_stamp(block, content))

    def before_flush(self) -> list[int]:
        """What a flush that is issued now will make durable; to be given to `flushed`."""
        return list(self._acknowledged)

    def flushed(self, covered: list[int]) -> None:
        """That flush was answered."""
        self.flushes += 1
        self._durable = [max(pair) for pair in zip(self._durable, covered, strict=True)]

    def missing(self, read: Callable[[int], bytes]) -> list[str]:
        """What was acknowledged and flushed, and is not there.

        AssertionError: a block holds what nobody wrote.
        """
        lost: list[str] = []
        for block, durable in enumerate(self._durable):
            turn = read_stamp(block, read(block))
            assert turn <= self._issued[block], f"block {block} is from write {turn}, never issued"
            if turn < durable:
                lost.append(f"block {block} is from write {turn}, write {durable} was flushed")
        return lost

    def settle(self, read: Callable[[int], bytes]) -> None:
        """After a crash: what is there now is what there is."""
        for block in range(self.blocks):
            turn = read_stamp(block, read(block))
            self._acknowledged[block] = self._durable[block] = self._issued[block] = turn
