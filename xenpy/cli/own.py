# SPDX-License-Identifier: MIT
"""A backend in a file of somebody's own, as a driver."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeAlias, cast

from xenpy.cli.errors import DriverError, UsageError
from xenpy.driver import Driver
from xenpy.ring_backend import Backend, driver_of
from xenpy.suggest import Suggestions

__all__ = ["driver_in"]

Found: TypeAlias = type[Backend[tuple[int, ...], tuple[int, ...]]]


def driver_in(name: str, suggestions: Suggestions | None = None) -> Driver:
    """The driver that FILE.py, or FILE.py:Class, has in it.

    Raises:
        UsageError: there is no such file, or no class of a backend in it, or several.
        DriverError: the file cannot be run, or its class is not whole.
    """
    place, _, wanted = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    module = _run(Path(place or name))
    classes = {
        key: cast("Found", found)
        for key, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, Backend) and found is not Backend
    }
    if wanted:
        classes = {key: found for key, found in classes.items() if key == wanted}
    if len(classes) != 1:
        known = ", ".join(sorted(classes)) or "none"
        raise UsageError(f"{place} has these backends: {known}; name one, {place}:Class")
    (found,) = classes.values()
    if not hasattr(found, "protocol"):
        raise DriverError(f"{found.__name__} of {place} has no protocol")
    try:
        return driver_of(found, found.spoken(), suggestions)
    except ValueError as error:
        raise DriverError(f"{found.__name__} of {place}: {error}") from error


def _run(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        raise UsageError(f"{path} is no file FILE.py")
    name = path.stem
    if name in sys.stdlib_module_names or name == "xenpy":
        raise UsageError(f"{path} has the name of a module that there is: call it otherwise")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    # What the file imports lies beside it, and NamedTuples look their own module up.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise DriverError(f"{path} cannot be run: {text}") from error
    return module
