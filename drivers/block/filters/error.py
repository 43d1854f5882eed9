# SPDX-License-Identifier: MIT
"""`error,probability=P,...`: a disk that fails now and then, the same way with the same seed."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from xenpy.drivers.block.filters.base import Around, FilterPlace, Operation
from xenpy.drivers.block.store import Store
from xenpy.words import Words

__all__ = ["ErrorFilter", "Errors"]

NAMES: Final = {name: number for number, name in errno.errorcode.items()}
ALL: Final = "all"
CHOICES: Final = (ALL, *(operation.value for operation in Operation))
SEED_LIMIT: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Errors:
    """The words.

    Attributes:
        probability: of each call's failing.
        operation: which calls; None: all.
        number: the errno.
        first, end: only calls that touch these bytes, and a flush only if it is named;
            without both: all calls.
        seed: of the dice; None: one is made up, and logged.
    """

    probability: float
    operation: Operation | None
    number: int
    first: int
    end: int | None
    seed: int | None
    lower_readonly: bool = False

    @classmethod
    def parse(cls, words: Words) -> Errors:
        probability = words.number("probability", 1.0, low=0.0, high=1.0)
        operation = words.choice("operation", CHOICES, ALL)
        name = words.choice("errno", sorted(NAMES), "EIO")
        first, end = words.size("from", 0), words.size("to", 0) or None
        seed = words.number("seed", -1, low=0, high=SEED_LIMIT)
        words.end()
        if end is not None and first >= end:
            raise ValueError(f"error: from={first} is not before to={end}")
        return cls(
            probability, None if operation == ALL else Operation(operation), NAMES[name],
            first, end, int(seed) if seed >= 0 else None,
        )  # fmt: skip

    def meant(self, operation: Operation, offset: int, length: int) -> bool:
        """Whether a call may be made to fail."""
        if self.operation not in (None, operation):
            return False
        if operation is Operation.FLUSH:
            return self.operation is operation or (self.first == 0 and self.end is None)
        return offset + length > self.first and (self.end is None or offset < self.end)

    def wrap(self, lower: Store, place: FilterPlace) -> Store:
        seed = self.seed
        if seed is None:
            seed = int.from_bytes(os.urandom(4), "little")
        place.log.info("the error filter throws its dice with seed=%d", seed)
        return ErrorFilter(lower, self, seed)


class ErrorFilter(Around):
    """Fails calls instead of making them."""

    def __init__(self, lower: Store, errors: Errors, seed: int) -> None:
        super().__init__(lower)
        self._errors = errors
        self._dice = random.Random(seed)
        self._turn = threading.Lock()

    def around(
        self, operation: Operation, offset: int, length: int, call: Callable[[], None]
    ) -> None:
        errors = self._errors
        if errors.meant(operation, offset, length):
            with self._turn:
                fails = self._dice.random() < errors.probability
            if fails:
                raise OSError(errors.number, f"{os.strerror(errors.number)} (error filter)")
        call()
