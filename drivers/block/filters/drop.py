# SPDX-License-Identifier: MIT
"""`drop,probability=P,...`: a disk that says it has written, and has not.

What a file system makes of lost writes, and of flushes that flush nothing, is seen at the next
mount.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from xenpy.drivers.block.filters.base import Around, FilterPlace, Operation
from xenpy.drivers.block.filters.chance import Chance, Dice
from xenpy.drivers.block.store import Store
from xenpy.words import Words

__all__ = ["Drop", "DropFilter"]

NAME: Final = "drop"
DROPPED: Final = (Operation.WRITE, Operation.FLUSH, Operation.DISCARD, Operation.ZERO)
"""A read that is not done would tell a guest what a buffer held before."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The words.

    Attributes:
        chance: which calls are lost.
    """

    chance: Chance
    lower_readonly: bool = False

    @classmethod
    def parse(cls, words: Words) -> Drop:
        chance = Chance.parse(NAME, words, DROPPED)
        words.end()
        return cls(chance)

    def wrap(self, lower: Store, place: FilterPlace) -> Store:
        return DropFilter(lower, Dice(NAME, self.chance, place))


class DropFilter(Around):
    """Leaves calls out."""

    def __init__(self, lower: Store, dice: Dice) -> None:
        super().__init__(lower)
        self._dice = dice

    def around(
        self, operation: Operation, offset: int, length: int, call: Callable[[], None]
    ) -> None:
        if not self._dice.hit(operation, offset, length):
            call()
