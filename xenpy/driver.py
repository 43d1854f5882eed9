# SPDX-License-Identifier: MIT
"""What a driver package declares, so that the command line can find and use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from xenpy.attach import DevicePlan
from xenpy.backend import Device, DeviceContext
from xenpy.types import GrantRef

if TYPE_CHECKING:
    from xenpy.peek import PeekLayout
    from xenpy.trace import TraceRecord

__all__ = ["Decode", "Driver", "Peeked", "Value", "nothing"]

Value: TypeAlias = int | str | Sequence[Sequence[int]]
"""A field of a request or response: a number, a word, or rows of numbers such as segments."""
Decode: TypeAlias = "Callable[[str, TraceRecord], Mapping[str, Value]]"
"""From a layout and a record to fields: see `Driver.decode`."""


def _anything(_: Mapping[str, str]) -> None:
    """A driver that looks at its options when it makes a device."""


@dataclass(frozen=True, slots=True)
class Peeked:
    """Rings of a frontend, as it has published them; see `xenpy.passive_tap`.

    Attributes:
        name: of the layout, for `Driver.decode`.
        layout: how answers find their requests.
        refs: of the pages of each ring.
    """

    name: str
    layout: PeekLayout
    refs: Sequence[Sequence[GrantRef]]


def nothing(_layout: str, _record: TraceRecord) -> Mapping[str, Value]:
    """A driver that does not say what its messages mean: they are shown as bytes."""
    return {}


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
        decode: what a record of `Device.recorded` says: the fields of request and response by name,
            in order; of a disk, `op`, `sector`, `sectors` and `status` among them.  Never raises
            for what a guest wrote.
        kinds: of backends, anybody's, that speak the driver's protocol.
        peek: finds the rings in the keys of a frontend of theirs.  Raises PeerError.
    """

    name: str
    kind: str
    summary: str
    backend: Callable[[DeviceContext], Device]
    options: Mapping[str, str]
    plan: Callable[[Mapping[str, str], str], DevicePlan]
    check_options: Callable[[Mapping[str, str]], object] = _anything
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    decode: Decode = nothing
    kinds: tuple[str, ...] = ()
    peek: Callable[[Mapping[str, str]], Peeked] | None = None
