# SPDX-License-Identifier: MIT
"""What an operator says of consoles: the words of `xenpy serve` and `xenpy attach`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from xenpy.drivers.console.log_outlet import KEEP, SIZE, LogOutlet
from xenpy.words import Words

__all__ = ["OPTIONS", "LogSettings"]

MOST_KEPT: Final = 99
OPTIONS: Final[Mapping[str, str]] = {
    "log-dir": "a directory: what a console prints goes to console-DOMID-DEVID.log there as well",
    "log-size": f"bytes, or with K, M, G, after which such a file is put aside ({SIZE >> 20}M)",
    "log-keep": f"how many of those put aside are kept ({KEEP})",
}


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Attributes:
    directory: of the logs; None: there are none.
    size, keep: see `OPTIONS`.
    """

    directory: Path | None = None
    size: int = SIZE
    keep: int = KEEP

    @classmethod
    def parse(cls, options: Mapping[str, str]) -> Self:
        """Raises ValueError: a value makes no sense."""
        words = Words("console", options)
        directory = words.text("log-dir")
        size = words.size("log-size", SIZE, multiple=1)
        keep = words.number("log-keep", KEEP, low=0, high=MOST_KEPT)
        words.end()
        if not size:
            raise ValueError("console: a log-size of 0 holds nothing")
        if keep != int(keep):
            raise ValueError(f"console: log-keep is {keep:g}; give a whole number")
        return cls(Path(directory) if directory else None, size, int(keep))

    def open(
        self, path: Path | None, name: str, log: logging.LoggerAdapter[logging.Logger]
    ) -> LogOutlet | None:
        """The log of one console, if it has one.

        Args:
            path: its own file; None: one in `directory`.
            name: of that one.

        Raises:
            OSError: it cannot be opened.
        """
        if path is None:
            if self.directory is None:
                return None
            path = self.directory / f"{name}.log"
        return LogOutlet(path, log, size=self.size, keep=self.keep)
