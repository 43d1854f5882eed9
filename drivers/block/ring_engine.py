# SPDX-License-Identifier: MIT
"""An engine for one ring as the event loop sees it, in whatever tier it runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from xenpy.runtime import Engine

__all__ = ["RingEngine"]


class RingEngine(Engine):
    """What the device asks of it beside what its thread runs.

    Attributes:
        where: it is served, for the log.
    """

    where: str

    @abstractmethod
    def resize(self, sectors: int) -> None:
        """Check requests against another size from the next batch on: 512-byte sectors."""

    @abstractmethod
    def counters(self) -> Mapping[str, int]:
        """Counts by the names of `datapath.Counters`; not after `release`."""

    @abstractmethod
    def release(self) -> None:
        """Let go of what outlives the thread, which has ended."""
