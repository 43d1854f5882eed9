# SPDX-License-Identifier: MIT
"""A console and those that read it: all of them get all output, and any may type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xenpy.drivers.console.outlet import Outlet

__all__ = ["TYPED_LIMIT", "Hub"]

TYPED_LIMIT: Final = 4096
"""Bytes that may wait for a guest that does not read before nobody may type any more."""


class Hub:
    """What stands between a link, which comes and goes with the guest's connections, and the
    outlets, which stay.

    Attributes:
        outlets: all that read it.
        printed, accepted: bytes that the guest has printed, and that were typed to it.
    """

    def __init__(self) -> None:
        self.outlets: list[Outlet] = []
        self.printed = self.accepted = 0
        self._waiting = bytearray()
        self._paused = False
        self._wake: Callable[[], object] = _nobody

    @property
    def lost(self) -> int:
        """Bytes that some outlet did not get."""
        return sum(outlet.lost for outlet in self.outlets)

    def connected(self, wake: Callable[[], object]) -> None:
        """A link has come.  `wake` is called when there is something to be taken."""
        self._wake = wake

    def disconnected(self) -> None:
        """It has gone; what is typed waits for the next."""
        self._wake = _nobody

    def print(self, content: bytes) -> None:
        """The guest has printed this."""
        self.printed += len(content)
        for outlet in self.outlets:
            outlet.put(content)

    def typed(self, content: bytes) -> None:
        """Somebody has typed this."""
        self._waiting += content
        if len(self._waiting) >= TYPED_LIMIT and not self._paused:
            self._paused = True
            for outlet in self.outlets:
                outlet.pause()
        self._wake()

    def take(self, write: Callable[[bytes], int]) -> int:
        """Have what waits written to the guest.

        Args:
            write: writes as much as there is room for, and says how much that was.

        Returns:
            How many bytes.
        """
        if not self._waiting:
            return 0
        count = write(bytes(self._waiting))
        del self._waiting[:count]
        self.accepted += count
        if self._paused and len(self._waiting) < TYPED_LIMIT:
            self._paused = False
            for outlet in self.outlets:
                outlet.resume()
        return count

    def close(self) -> None:
        """Close every outlet."""
        outlets, self.outlets = self.outlets, []
        for outlet in outlets:
            outlet.close()


def _nobody() -> None:
    """No link."""
