# SPDX-License-Identifier: MIT
"""A device's logger: it says the device's name, and a guest cannot flood the log (XSA-43).

Imports nothing of xenpy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Final

__all__ = ["BoundedLog", "TokenBucket"]

BURST: Final = 40
PER_SECOND: Final = 2.0


class TokenBucket:
    """`burst` tokens at once, then `rate` a second."""

    def __init__(
        self, burst: int, rate: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = float(burst)
        self._rate = rate
        self._clock = clock
        self._tokens = float(burst)
        self._filled_at = clock()

    def take(self) -> float:
        """Take a token.  Returns 0.0, or, having taken none, the seconds until there is one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate


class BoundedLog(logging.LoggerAdapter[logging.Logger]):
    """Prefixes the device's name; past the allowance, lines are counted instead of written.

    DEBUG lines are not bounded: they appear only when the operator asked for a trace.
    """

    def __init__(self, logger: logging.Logger, name: str) -> None:
        super().__init__(logger, {"device": name})
        self._name = name
        self._bucket = TokenBucket(BURST, PER_SECOND)
        self.suppressed = 0

    def isEnabledFor(self, level: int) -> bool:
        """Asked once for each line, before it is formatted: the place to refuse one cheaply."""
        if not super().isEnabledFor(level):
            return False
        if level > logging.DEBUG and self._bucket.take() > 0.0:
            self.suppressed += 1
            return False
        return True

    def process(
        self, msg: object, kwargs: MutableMapping[str, object]
    ) -> tuple[str, MutableMapping[str, object]]:
        count, self.suppressed = self.suppressed, 0
        missing = f" ({count} lines before this one were suppressed)" if count else ""
        return f"{self._name}:{missing} {msg}", kwargs
