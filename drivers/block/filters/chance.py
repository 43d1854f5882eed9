# SPDX-License-Identifier: MIT
"""Which calls a filter spoils: how often, of what kind and where; the same with the same seed."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from xenpy.drivers.block.filters.base import FilterPlace, Operation
from xenpy.words import Words

__all__ = ["Chance", "Dice"]

ALL: Final = "all"
SEED_LIMIT: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Chance:
    """The words.

    Attributes:
        probability: of each call's being spoiled.
        operations: which calls.
        named: somebody named the operation.
        first, end: only calls that touch these bytes, and a flush only if it is named;
            without both: all calls.
        seed: of the dice; None: one is made up, and logged.
    """

    probability: float
    operations: frozenset[Operation]
    named: bool
    first: int
    end: int | None
    seed: int | None

    @classmethod
    def parse(cls, name: str, words: Words, choices: Sequence[Operation]) -> Chance:
        """Take `probability`, `operation`, `from`, `to` and `seed`.

        Args:
            name: of the filter, for the messages.
            choices: what can be spoiled.
        """
        probability = words.number("probability", 1.0, low=0.0, high=1.0)
        values = (ALL, *(operation.value for operation in choices))
        operation = words.choice("operation", values, ALL)
        first, end = words.size("from", 0), words.size("to", 0) or None
        seed = words.number("seed", -1, low=0, high=SEED_LIMIT)
        if end is not None and first >= end:
            raise ValueError(f"{name}: from={first} is not before to={end}")
        named = operation != ALL
        operations = frozenset([Operation(operation)] if named else choices)
        return cls(probability, operations, named, first, end, int(seed) if seed >= 0 else None)

    def meant(self, operation: Operation, offset: int, length: int) -> bool:
        """Whether a call may be spoiled."""
        if operation not in self.operations:
            return False
        if operation is Operation.FLUSH:
            return self.named or (self.first == 0 and self.end is None)
        return offset + length > self.first and (self.end is None or offset < self.end)


class Dice:
    """Throws for each call that is meant.  Thread-safe.

    Args:
        name: of the filter, for the log.
    """

    def __init__(self, name: str, chance: Chance, place: FilterPlace) -> None:
        seed = chance.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(4), "little")
        place.log.info("the %s filter throws its dice with seed=%d", name, seed)
        self._chance = chance
        self._random = random.Random(seed)
        self._turn = threading.Lock()

    def hit(self, operation: Operation, offset: int, length: int) -> bool:
        """Whether this call is to be spoiled."""
        if not self._chance.meant(operation, offset, length):
            return False
        with self._turn:
            return self._random.random() < self._chance.probability
