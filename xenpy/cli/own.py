# SPDX-License-Identifier: MIT
"""A backend in a file of somebody's own, as a driver; and the protocol in such a file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TypeAlias, TypeVar, cast

from xenpy.backend import Keys
from xenpy.cli.errors import DriverError, UsageError
from xenpy.driver import Driver
from xenpy.ring_backend import Backend, driver_of
from xenpy.ring_protocol import RingProtocol
from xenpy.stream_backend import StreamBackend, stream_driver_of
from xenpy.suggest import Suggestions

__all__ = ["driver_in", "protocol_in"]

Found: TypeAlias = type[Backend[tuple[int, ...], tuple[int, ...]]]
Spoken: TypeAlias = RingProtocol[tuple[int, ...], tuple[int, ...]]
T = TypeVar("T")


def driver_in(name: str, suggestions: Suggestions | None = None) -> Driver:
    """The driver that FILE.py, or FILE.py:Class, has in it.

    Raises:
        UsageError: there is no such file, or no class of a backend in it, or several.
        DriverError: the file cannot be run, or its class is not whole.
    """
    place, module, wanted = _open(name)
    backends = _backends(module)
    chosen = _the_one({**backends, **_classes(module, StreamBackend)}, place, wanted)
    _check_whole(chosen, place)
    try:
        if issubclass(chosen, StreamBackend):
            return stream_driver_of(chosen, chosen.protocol, chosen.settings)
        found = backends[chosen.__name__]
        return driver_of(found, found.spoken(), suggestions, found.settings)
    except ValueError as error:
        raise DriverError(f"{chosen.__name__} of {place}: {error}") from error


def protocol_in(name: str) -> tuple[Spoken, Keys]:
    """The protocol that FILE.py has in it, and the keys that its backend publishes.

    That of its backend; of a file without one, the RingProtocol itself.  FILE.py:Name where
    there are several.

    Raises:
        UsageError: there is no such file, or no protocol in it, or several.
        DriverError: the file cannot be run, or its class is not whole.
    """
    place, module, wanted = _open(name)
    backends = _backends(module)
    protocols = {
        key: cast("Spoken", found)
        for key, found in vars(module).items()
        if isinstance(found, RingProtocol)
    }
    if wanted in protocols or not backends:
        return _the_one(protocols, place, wanted), {}
    found = _the_one(backends, place, wanted)
    _check_whole(found, place)
    return found.spoken(), found.features


def _open(name: str) -> tuple[str, ModuleType, str]:
    """A file, what it is when it has been run, and which of the things in it is meant."""
    place, _, wanted = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    return place, _run(Path(place or name)), wanted


def _backends(module: ModuleType) -> dict[str, Found]:
    return cast("dict[str, Found]", _classes(module, Backend))


def _classes(module: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """What the file has of subclasses of `base`."""
    return {
        key: found
        for key, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, base) and found is not base
    }


def _the_one(found: Mapping[str, T], place: str, wanted: str) -> T:
    chosen = {key: thing for key, thing in found.items() if wanted in ("", key)}
    if len(chosen) != 1:
        known = ", ".join(sorted(found)) or "none"
        raise UsageError(f"{place} has these to choose from: {known}; name one, {place}:NAME")
    return next(iter(chosen.values()))


def _check_whole(found: type, place: str) -> None:
    if not hasattr(found, "protocol"):
        raise DriverError(f"{found.__name__} of {place} has no protocol")


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
