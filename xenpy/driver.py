# SPDX-License-Identifier: MIT
"""What a driver package declares, so that the command line can find and use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from xenpy.attach import DevicePlan
from xenpy.backend import Device, DeviceContext

__all__ = ["Driver"]


def _anything(_: Mapping[str, str]) -> None:
    """A driver that looks at its options when it makes a device."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver, as the entry-point group `xenpy.drivers` names it.

    Attributes:
        name: as `xenpy serve NAME` takes it.
        kind: the default directory below `backend/`.
        summary: one line for `--help`.
        backend: makes the backend's half of a device.
        options: what `xenpy serve NAME key=value` takes: name -> help.
        plan: turns the words of `xenpy attach NAME DOMID key=value` and the backend kind
            into the nodes to write.  Raises ValueError for a word it does not understand.
        check_options: looks at the options' values when the daemon starts.  Raises ValueError
            for one that makes no sense.
        settings: which of the words of `xenpy attach` may be others later, by
            `xenpy reconfigure`: name -> help.  They are keys of the backend's directory.
    """

    name: str
    kind: str
    summary: str
    backend: Callable[[DeviceContext], Device]
    options: Mapping[str, str]
    plan: Callable[[Mapping[str, str], str], DevicePlan]
    check_options: Callable[[Mapping[str, str]], object] = _anything
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
