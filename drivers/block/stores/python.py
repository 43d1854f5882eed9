# SPDX-License-Identifier: MIT
"""`python:/srv/store.py:Class?key=value`: a store that the operator wrote.

It runs in the daemon, with all its rights, so the operator has to allow it first.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Final
from urllib.parse import parse_qsl

from xenpy.backend import DeviceError
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
    place, colon, class_name = name.rpartition(":")
    if not colon or not class_name.isidentifier():
        raise DeviceError(f"{words!r} names no class; give {FORM}")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise DeviceError(f"{query!r} is not key=value&key=value") from error
    inner = _make(place, class_name, options)
    problem = _problem(inner, readonly=readonly)
    if problem:
        inner.close()
        raise DeviceError(f"{class_name} of {place} {problem}")
    return Guarded(inner, readonly=readonly)


def _make(place: str, class_name: str, options: dict[str, str]) -> Store:
    try:
        found: object = getattr(_module(place), class_name)
        if not (isinstance(found, type) and issubclass(found, Store)):
            raise DeviceError(f"{class_name} of {place} is no subclass of {Store.__module__}.Store")
        return found(**options)
    except DeviceError:
        raise
    except Exception as error:
        # Somebody else's code runs here, and may fail in any way.
        text = f"{type(error).__name__}: {error}"
        raise DeviceError(f"cannot make {class_name} of {place}: {text}") from error


def _module(place: str) -> ModuleType:
    """A file is run anew for each disk, so that a change of it shows at the next attach."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    if not Path(place).is_absolute():
        raise DeviceError(f"{place!r} is not an absolute path: the daemon has no directory")
    name = f"xenpy_store_{Path(place).stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise DeviceError(f"{place} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


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
