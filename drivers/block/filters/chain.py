# SPDX-License-Identifier: MIT
"""From `NAME,key=value` to filters in front of a store, in nbdkit's order: the first that is
named is next to the guest, the last is next to the store."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from xenpy.drivers.block.filters.base import FilterMaker, FilterPlace
from xenpy.drivers.block.filters.cow import Cow
from xenpy.drivers.block.filters.delay import Delay
from xenpy.drivers.block.filters.drop import Drop
from xenpy.drivers.block.filters.error import Errors
from xenpy.drivers.block.filters.log import Log
from xenpy.drivers.block.filters.python import Python
from xenpy.drivers.block.filters.rate import Rate
from xenpy.drivers.block.filters.readonly import Readonly
from xenpy.drivers.block.filters.replay import Replay
from xenpy.drivers.block.filters.stats import Stats
from xenpy.drivers.block.store import Store
from xenpy.words import Words

__all__ = ["FILTERS", "parse_filters", "wrap"]

FILTERS: Final[Mapping[str, Callable[[Words], FilterMaker]]] = {
    "cow": Cow.parse,
    "delay": Delay.parse,
    "drop": Drop.parse,
    "error": Errors.parse,
    "log": Log.parse,
    "python": Python.parse,
    "rate": Rate.parse,
    "readonly": Readonly.parse,
    "replay": Replay.parse,
    "stats": Stats.parse,
}


def parse_filters(text: str) -> tuple[FilterMaker, ...]:
    """Check filters, which stand apart by spaces and are quoted as a shell quotes.

    A comma within a value is written twice, as QEMU has it.

    Raises:
        ValueError: there is no such filter, or it does not take such words.
    """
    if "\0" in text:
        raise ValueError("filter holds a NUL byte")
    return tuple(map(_parse, shlex.split(text)))


def _parse(text: str) -> FilterMaker:
    name, *words = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    parse = FILTERS.get(name)
    if parse is None:
        raise ValueError(f"there is no filter {name!r}; there are {', '.join(FILTERS)}")
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key in pairs:
            raise ValueError(f"{name}: {word!r} is not key=value, or is given twice")
        pairs[key] = value
    return parse(Words(name, pairs))


def wrap(store: Store, makers: Sequence[FilterMaker], place: FilterPlace) -> Store:
    """Put filters in front of a store.

    Raises:
        OSError, DeviceError: as `FilterMaker.wrap`.  Everything is closed then, the store too.
    """
    for maker in reversed(makers):
        try:
            store = maker.wrap(store, place)
        except BaseException:
            store.close()
            raise
    return store
