# SPDX-License-Identifier: MIT
"""What the backends of protocols of your own have in common, of requests or of bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeVar

from xenpy.attach import NO_SETTINGS, DevicePlan
from xenpy.backend import Device, DeviceContext, DeviceError, Keys
from xenpy.driver import Decode, Driver, nothing
from xenpy.types import DevId

__all__ = ["OwnBackend", "call_hook", "own_driver"]

T = TypeVar("T")

RESERVED: Final = {
    "devid", "frontend", "frontend-id", "online", "state", "hotplug-status", "hotplug-error",
}  # fmt: skip
"""What the framework, or a toolstack, has in the same directory."""


class OwnBackend:
    """One device; made when the toolstack makes it, and kept over any number of connections.

    Attributes:
        features: keys to publish before a frontend connects.
        settings: keys that the operator may give, with what they mean: as words of
            `xenpy attach`, and of `xenpy reconfigure` later.  `context.backend_keys` has those
            that were given.  The frontend sees them; a feature of the same name is a default.
        context: what the framework says of the device; `context.log` is bounded.
        frontend: the keys that the frontend has published: hostile.
    """

    features: Keys = MappingProxyType({})
    settings: Mapping[str, str] = NO_SETTINGS

    def __init__(self, context: DeviceContext) -> None:
        self.context = context
        self.frontend: Mapping[str, str] = {}

    def published(self) -> Keys:
        """`features`, but for settings that the operator has given.  For the framework."""
        given = self.settings.keys() & self.context.backend_keys.keys()
        return {key: value for key, value in self.features.items() if key not in given}

    async def reconfigure(self) -> Keys:
        """The operator has given other settings, which `context.backend_keys` has by now.

        Returns:
            The keys for the frontend, beside the settings, that are others now.  It is told.

        Raises:
            DeviceError: they cannot be had; the device keeps those of before.
        """
        raise DeviceError("it takes its settings when it is attached, and no others later")


async def call_hook(
    hook: Callable[[], Awaitable[T]], passed: tuple[type[Exception], ...] = ()
) -> T:
    """What somebody's hook returns, whatever it raises.

    Args:
        passed: what it may raise beside an OSError and a DeviceError.

    Raises:
        DeviceError: it did, or something else, which is somebody's bug; or as above.
    """
    try:
        return await hook()
    except (DeviceError, OSError):
        raise
    except passed:
        raise
    except Exception as error:
        name = getattr(hook, "__name__", "a hook")
        raise DeviceError(f"{name}: {type(error).__name__}: {error}") from error


def own_driver(
    name: str,
    settings: Mapping[str, str],
    backend: Callable[[DeviceContext], Device],
    decode: Decode = nothing,
) -> Driver:
    """A driver of one's own, whose devices have a number and `settings`.

    Raises:
        ValueError: a setting has the name of a key that is something else.
    """
    for key in settings:
        if key in RESERVED or "/" in key or key.startswith("xenpy-"):
            raise ValueError(f"a setting cannot be called {key!r}")
    return Driver(
        name=name,
        kind=name,
        summary=f"{name}, a protocol of your own",
        backend=backend,
        options={},
        plan=lambda words, kind: _plan(name, settings, words, kind),
        settings=settings,
        decode=decode,
    )


def _plan(
    name: str, settings: Mapping[str, str], words: Mapping[str, str], kind: str
) -> DevicePlan:
    """The nodes of a device of one's own.

    Raises:
        ValueError: a word is no setting.
    """
    rest = {key: text for key, text in words.items() if key != "devid"}
    for key in rest:
        if key not in settings:
            known = ", ".join(["devid=N", *(f"{word}=..." for word in settings)])
            raise ValueError(f"{name} takes {known}, and no {key!r}")
    text = words.get("devid", "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError(f"devid is {text!r}; give a number")
    return DevicePlan(name, kind, DevId(int(text)), backend_keys=rest, frontend_keys={})
