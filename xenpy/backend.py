# SPDX-License-Identifier: MIT
"""What a backend driver is written against.

A driver subclasses `Device`; `xenpy.service.Service` finds the devices that the
toolstack makes under `backend/KIND` and takes each through its life
(`xenpy.lifecycle`), calling the four coroutines below in order:

    prepare -> connect -> disconnect -> (connect -> disconnect ...) -> close

`connect` is called again after `disconnect` when a frontend reconnects.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from xenpy.runtime import Deferred
from xenpy.types import DOM0, DevId, DomId

if TYPE_CHECKING:
    from xenpy.evtchn import EventChannels
    from xenpy.gnttab import GrantTable
    from xenpy.trace import Trace

__all__ = [
    "Device", "DeviceContext", "DeviceError", "Keys", "NativeXen", "Recorded", "XenAccess",
    "open_restricted",
]  # fmt: skip

Keys = Mapping[str, str | int]
"""XenStore keys to publish, relative to the device's directory."""


class DeviceError(Exception):
    """The device cannot be served, through no fault of the frontend: a missing image, an
    image in use.  The text goes to `hotplug-error`, where `xl` shows it to the operator."""


class XenAccess(Protocol):
    """How a device opens its own handles; `xenpy.testing` substitutes fakes here."""

    def open_grants(self) -> GrantTable: ...
    def open_evtchn(self) -> EventChannels: ...


class NativeXen:
    """`XenAccess` of the running system.  Imports the Xen libraries on first use."""

    def open_grants(self) -> GrantTable:
        from xenpy.gnttab import GrantTable

        return GrantTable()

    def open_evtchn(self) -> EventChannels:
        from xenpy.evtchn import EventChannels

        return EventChannels()


def open_restricted(xen: XenAccess, domid: DomId) -> EventChannels:
    """An event-channel handle that can bind to ports of `domid` only.

    Linux knows no handle restricted to domain 0 (EINVAL), the frontend of a loopback: for that
    it is one like any other.

    Raises:
        XenError: there is no handle to be had, or it cannot be restricted; nothing is held.
    """
    channels = xen.open_evtchn()
    if domid != DOM0:
        try:
            channels.restrict(domid)
        except BaseException:
            channels.close()
            raise
    return channels


def _no_failure(_: Exception) -> None:
    raise RuntimeError("this context belongs to no life cycle")


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where a device's engines record what its rings carry, for `xenpy tap`.

    Attributes:
        layout: how the driver's `Driver.decode` has to read it, such as "x86_64-abi".
        traces: of the rings, in order; each is closed when its ring is.
    """

    layout: str
    traces: Sequence[Trace]


@dataclass(slots=True)
class DeviceContext:
    """What the framework tells a device about itself.

    Attributes:
        kind, domid, devid: the backend's kind ("vbd3"), the frontend's domid, the device.
        path: the backend's own directory in XenStore, absolute.
        frontend_path: the frontend's directory; checked to belong to `domid`.
        backend_keys: the backend's own directory as the toolstack wrote it: trusted.  What
            `xenpy reconfigure` gives a driver that has settings replaces those.
        options: what the operator gave on the command line, by name.
        xen: opens grant-table and event-channel handles.
        log: a logger that says the device's name, bounded in lines per second.
        on_failure: to be called in the event loop when the data plane has failed; the
            device is then disconnected and closed with an error node.
        deferred: unmaps that wait for a view to die.
        store_path: of the XenStore that the device is in; None: the default.
    """

    kind: str
    domid: DomId
    devid: DevId
    path: str
    frontend_path: str
    backend_keys: Mapping[str, str]
    options: Mapping[str, str]
    xen: XenAccess
    log: logging.LoggerAdapter[logging.Logger]
    on_failure: Callable[[Exception], None] = _no_failure
    deferred: Deferred = field(default_factory=Deferred)
    store_path: str | None = None

    @property
    def name(self) -> str:
        """KIND/DOMID/DEVID, as the device prints everywhere."""
        return f"{self.kind}/{self.domid}/{self.devid}"


class Device(ABC):
    """A driver's half of one device.  All four coroutines run in the event loop, one at a
    time; blocking work belongs in a thread (`runtime.in_thread`) or in the queue's thread.
    """

    def __init__(self, context: DeviceContext) -> None:
        self.context = context

    @abstractmethod
    async def prepare(self) -> Keys:
        """Open what is served.  Returns the keys to publish before InitWait.

        libxl waits 10 s for InitWait.

        Raises:
            DeviceError: the device cannot be served; the operator reads why.
        """

    def frontend_keys(self) -> Keys:
        """Keys for the frontend's directory, which the guest may read and not write, such as the
        `tty` where `xl console` finds a console.  Asked for after `prepare`.

        Only where this domain may write there: domain 0 may.
        """
        return {}

    @abstractmethod
    async def connect(self, frontend: Mapping[str, str]) -> Keys:
        """Map the rings that the frontend published and start to serve them.

        Args:
            frontend: the frontend's directory.  Hostile input: a value may be any text
                (bytes that are no UTF-8 come as surrogates), any key may be missing.

        Returns:
            The keys to publish together with Connected.

        Raises:
            PeerError: the keys make no sense.
            XenError: they name a ring that cannot be mapped or a port that cannot be bound.
                Nothing may be held after either.
        """

    @abstractmethod
    async def disconnect(self) -> None:
        """Stop serving.  Returns when nothing of the frontend is held any more, however
        long the I/O in flight takes.  Harmless when not connected."""

    async def hand_over(self) -> str:
        """Called when it is disconnected and the daemon ends: the next one is to go on as if
        nothing had happened.

        Returns:
            Why it may not, such as that what this frontend was promised is lost; the device is
            closed with that as its error.  Empty: it may.
        """
        return ""

    async def refresh(self) -> Keys:
        """Look again at what is served, which the operator says has changed.

        Returns:
            The keys that are others now.  If the frontend is connected, it is told.

        Raises:
            DeviceError: it cannot be served as it is; the device goes on as before.
        """
        raise DeviceError(f"{self.context.kind} has nothing that could change")

    @abstractmethod
    async def close(self) -> None:
        """Release what `prepare` opened.  Harmless when nothing is open."""

    def stats(self) -> Mapping[str, int]:
        """Counters by name, monotonic since `prepare`."""
        return {}

    def recorded(self) -> Recorded | None:
        """What can be tapped now.  None: nothing is connected, or the driver records nothing."""
        return None
