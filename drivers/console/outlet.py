# SPDX-License-Identifier: MIT
"""Where a console leads: what the guest prints goes there, what is typed there goes to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

__all__ = ["Outlet", "Typist"]


class Typist(Protocol):
    """Who takes what is typed: a `hub.Hub`."""

    def typed(self, content: bytes) -> None:
        """Give bytes to the guest.  The caller stops reading when it is told to `pause`."""


class Outlet(ABC):
    """One reader of a console.  All methods run in the event loop, and none waits: a guest
    that prints waits for its console (hvc_xen's domU_write_console), whole kernel and all, so
    that a reader that does not keep up loses output instead.
    """

    @property
    @abstractmethod
    def lost(self) -> int:
        """Bytes that it did not get."""

    @abstractmethod
    def put(self, content: bytes) -> None:
        """The guest has printed this."""

    def pause(self) -> None:  # noqa: B027 - optional
        """The guest does not read: take nothing more that is typed."""

    def resume(self) -> None:  # noqa: B027 - optional
        """It does again."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything.  Harmless when closed."""
