# SPDX-License-Identifier: MIT
"""What a frontend driver is written against.

A driver subclasses `Frontend`; `xenpy.frontend_life.FrontendLife` finds its backend and
takes it through its life, calling in order

    publish -> connect -> changed ... -> drain -> disconnect

and again from `publish` when the backend starts over.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from xenpy.backend import Keys
from xenpy.frontend_nodes import Ends
from xenpy.types import DevId, DomId

if TYPE_CHECKING:
    from xenpy.evtchn import EventChannels
    from xenpy.gnttab import GrantShare

__all__ = ["Frontend", "FrontendAccess", "FrontendContext", "NativeFrontend"]


class FrontendAccess(Protocol):
    """How a frontend opens its own handles; `xenpy.testing` substitutes fakes here."""

    def open_share(self) -> GrantShare: ...
    def open_evtchn(self) -> EventChannels: ...


class NativeFrontend:
    """`FrontendAccess` of the running system.  Imports the Xen libraries on first use."""

    def open_share(self) -> GrantShare:
        from xenpy.gnttab import GrantShare

        return GrantShare()

    def open_evtchn(self) -> EventChannels:
        from xenpy.evtchn import EventChannels

        return EventChannels()


@dataclass(frozen=True, slots=True)
class FrontendContext:
    """What the framework tells a frontend about itself.

    Attributes:
        ends: the two directories; `ends.backend.backend_domid` is whom to grant to.
        xen: opens grant and event-channel handles.
        log: a logger that says the device's name, bounded in lines per second.
        on_failure: to be called in the event loop when the data plane has failed; the
            device is then disconnected and closed.
    """

    ends: Ends
    xen: FrontendAccess
    log: logging.LoggerAdapter[logging.Logger]
    on_failure: Callable[[Exception], None]

    @property
    def peer(self) -> DomId:
        """The backend's domain."""
        return self.ends.backend.backend_domid

    @property
    def devid(self) -> DevId:
        return self.ends.backend.devid


class Frontend(ABC):
    """A driver's half of one device.  All methods run in the event loop, one at a time."""

    transport_keys: ClassVar[re.Pattern[str]]
    """Which keys `publish` may return: those of connections before are removed first."""

    def __init__(self, context: FrontendContext) -> None:
        self.context = context

    @abstractmethod
    async def publish(self, backend: Mapping[str, str]) -> Keys:
        """Grant the rings, allocate the ports.

        Args:
            backend: the backend's directory as it stands in InitWait.  Hostile input: a
                value may be any text, any key may be missing.

        Returns:
            The keys to publish together with Initialised.

        Raises:
            PeerError: the keys make no sense.
            XenError: there is no page or port to be had.
                `disconnect` follows either.
        """

    @abstractmethod
    async def connect(self, backend: Mapping[str, str]) -> None:
        """The backend serves the rings: read what it says about the device.  Hostile input.

        Called again if Connected could not be written.

        Raises:
            PeerError: the keys make no sense; `disconnect` follows.
        """

    async def changed(self, backend: Mapping[str, str]) -> None:  # noqa: B027 - optional
        """The backend wrote its state once more while connected, as it does on a resize.

        Raises:
            PeerError: the keys make no sense; `disconnect` follows.
        """

    @abstractmethod
    async def drain(self) -> None:
        """Take no new work, and return when nothing is in flight any more."""

    @abstractmethod
    async def disconnect(self, reason: Exception) -> None:
        """Fail what is in flight with `reason` and give every page and port back.  Harmless
        when nothing was published."""
