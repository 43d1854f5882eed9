# SPDX-License-Identifier: MIT
"""`error,probability=P,...`: a disk that fails now and then, the same way with the same seed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from xenpy.drivers.block.filters.base import Around, FilterPlace, Operation
from xenpy.drivers.block.filters.chance import Chance, Dice
from xenpy.drivers.block.store import Store
from xenpy.words import Words

__all__ = ["ErrorFilter", "Errors"]

NAME: Final = "error"
NUMBERS: Final = {name: number for number, name in errno.errorcode.items()}


@dataclass(frozen=True, slots=True)
class Errors:
    """The words.

    Attributes:
        chance: which calls fail.
        number: with which errno.
    """

    chance: Chance
    number: int
    lower_readonly: bool = False

    @classmethod
    def parse(cls, words: Words) -> Errors:
        chance = Chance.parse(NAME, words, list(Operation))
        name = words.choice("errno", sorted(NUMBERS), "EIO")
        words.end()
        return cls(chance, NUMBERS[name])

    def wrap(self, lower: Store, place: FilterPlace) -> Store:
        return ErrorFilter(lower, Dice(NAME, self.chance, place), self.number)


class ErrorFilter(Around):
    """Fails calls instead of making them."""

    def __init__(self, lower: Store, dice: Dice, number: int) -> None:
        super().__init__(lower)
        self._dice = dice
        self._number = number

    def around(
        self, operation: Operation, offset: int, length: int, call: Callable[[], None]
    ) -> None:
        if self._dice.hit(operation, offset, length):
            raise OSError(self._number, f"{os.strerror(self._number)} (error filter)")
        call()
