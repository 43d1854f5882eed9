# SPDX-License-Identifier: MIT
"""`python:/srv/store.py:Class?key=value`: a store that the operator wrote.

It runs in the daemon, with all its rights, so the operator has to allow it first.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from xenpy.backend import DeviceError
from xenpy.drivers.block.operator_code import make, split
from xenpy.drivers.block.store import SECTOR_SIZES, Store
from xenpy.drivers.block.stores.guarded import Guarded

__all__ = ["open_python_store"]

FORM: Final = "python:/path/to/file.py:Class?key=value or python:module:Class"


def open_python_store(words: str, *, readonly: bool) -> Store:
    """Make the store that `words` name, what follows `python:`.

    Raises:
        DeviceError: there is no such class, or it does not want to be made.
    """
    name, _, query = words.partition("?")
    try:
        place, class_name = split(name)
    except ValueError:
        raise DeviceError(f"{words!r} names no class; give {FORM}") from None
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise DeviceError(f"{query!r} is not key=value&key=value") from error
    inner = make(Store, place, class_name, **options)  # type: ignore[type-abstract]
    problem = _problem(inner, readonly=readonly)
    if problem:
        inner.close()
        raise DeviceError(f"{class_name} of {place} {problem}")
    return Guarded(inner, readonly=readonly)


def _problem(store: Store, *, readonly: bool) -> str:
    """What is wrong with a store that was made, or ""."""
    sector = store.sector_size
    if sector not in SECTOR_SIZES:
        return f"has sector_size {sector!r}; it is one of {', '.join(map(str, SECTOR_SIZES))}"
    size: object = getattr(store, "size", None)
    if not isinstance(size, int) or size < sector:
        return f"has size {size!r}; a disk has at least one sector of {sector} bytes"
    if store.readonly and not readonly:
        return "is read-only: attach it with mode=r"
    return ""
