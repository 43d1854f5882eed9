# SPDX-License-Identifier: MIT
"""Numbers and flags that the other side wrote into XenStore, checked.  Pure.

Hostile input: a value may be any text, a key may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from xenpy.errors import PeerError

__all__ = ["SHOWN", "flag", "number"]

SHOWN: Final = 40
"""Characters of a value that an error repeats."""
MAX_DIGITS: Final = 20
"""Of a number of 64 bits."""


def number(
    keys: Mapping[str, str], name: str, default: int | None = None, *, bits: int = 32
) -> int:
    """A plain decimal number: no sign, space, prefix or leading zero.

    Raises:
        PeerError: it is none, or has more bits; or is missing without a default.
    """
    text = keys.get(name)
    if text is None:
        if default is None:
            raise PeerError(f"{name} is missing")
        return default
    plain = text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS
    if not plain or (text[0] == "0" and text != "0") or int(text) >> bits:
        raise PeerError(f"{name} is {text[:SHOWN]!r}, not a number of {bits} bits")
    return int(text)


def flag(keys: Mapping[str, str], name: str) -> bool:
    """0 or 1; absent is 0.

    Raises:
        PeerError: it is another.
    """
    value = number(keys, name, 0)
    if value > 1:
        raise PeerError(f"{name} is {value}, neither 0 nor 1")
    return value == 1
