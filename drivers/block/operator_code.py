# SPDX-License-Identifier: MIT
"""Finds a class that the operator wrote, and makes one of it.

It runs in the daemon, with all its rights: whoever calls this has been allowed to.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Final, TypeVar

from xenpy.backend import DeviceError

__all__ = ["NOT_ALLOWED", "make", "split"]

T = TypeVar("T")

NOT_ALLOWED: Final = "runs code in the daemon; allow it with python=1 at its start"


def split(name: str) -> tuple[str, str]:
    """`/path/to/file.py:Class` or `module:Class`, in its two parts.

    Raises:
        ValueError: it names no class.
    """
    place, colon, class_name = name.rpartition(":")
    if not colon or not place or not class_name.isidentifier():
        raise ValueError(f"{name!r} names no class; give /path/to/file.py:Class or module:Class")
    return place, class_name


def make(base: type[T], place: str, class_name: str, /, *arguments: object, **options: str) -> T:
    """One of a class, which is a subclass of `base`, with these arguments.

    Raises:
        DeviceError: there is no such class, or it does not want to be made.
    """
    try:
        found: object = getattr(_module(place), class_name)
        if not (isinstance(found, type) and issubclass(found, base)):
            name = f"{base.__module__}.{base.__name__}"
            raise DeviceError(f"{class_name} of {place} is no subclass of {name}")
        return found(*arguments, **options)
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
    name = f"xenpy_operator_{Path(place).stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise DeviceError(f"{place} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
