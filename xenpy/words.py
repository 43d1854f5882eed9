# SPDX-License-Identifier: MIT
"""The operator's `key=value` words: taken one by one, and what is left over is an error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["Words", "parse_size"]

SECTOR: Final = 512
UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str, multiple: int = SECTOR) -> int:
    """Bytes, as a number with K, M, G or T, which are powers of 1024.

    Raises:
        ValueError: it is none, or no multiple of `multiple`.
    """
    unit = UNITS.get(text[-1:].upper(), 1)
    digits = text if unit == 1 else text[:-1]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise ValueError(f"{text!r} is no size; give bytes, or a number with K, M, G or T")
    size = int(digits) * unit
    if size % multiple or size >= 1 << 63:
        raise ValueError(f"{text!r} is no multiple of {multiple} bytes below 2^63")
    return size


class Words:
    """What follows a name: `NAME,key=value,key=value`.

    Every method raises ValueError, which says `what` and what it takes instead.

    Args:
        what: whose words, for the messages.
        pairs: the words.
    """

    def __init__(self, what: str, pairs: Mapping[str, str]) -> None:
        self._what = what
        self._left = dict(pairs)
        self._known: list[str] = []

    def text(self, key: str, default: str = "") -> str:
        """A word as it is."""
        self._known.append(key)
        return self._left.pop(key, default)

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        """One of `choices`."""
        value = self.text(key, default)
        if value not in choices:
            raise ValueError(f"{self._what}: {key} is {value!r}; give one of {', '.join(choices)}")
        return value

    def number(self, key: str, default: float, *, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        text = self.text(key)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"{self._what}: {key} is {text!r}; give {low:g} to {high:g}")
        return value

    def size(self, key: str, default: int, multiple: int = SECTOR) -> int:
        """Bytes; see `parse_size`."""
        text = self.text(key)
        if not text:
            return default
        try:
            return parse_size(text, multiple)
        except ValueError as error:
            raise ValueError(f"{self._what}: {key}: {error}") from None

    def rest(self) -> Mapping[str, str]:
        """All that has not been taken yet, for somebody else to check."""
        left, self._left = self._left, {}
        return left

    def end(self) -> None:
        """Nothing else may be there."""
        if self._left:
            takes = ", ".join(self._known) or "nothing"
            raise ValueError(f"{self._what} has no {min(self._left)!r}; it takes {takes}")
