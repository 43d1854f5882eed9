# SPDX-License-Identifier: MIT
"""Do something in XenStore, and again while xenstored is away: it may be restarting under us."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from xenpy.errors import XenConnectionError, XenTimeoutError

__all__ = ["STORE_PAUSE", "insist"]

STORE_PAUSE: Final = 0.5
"""Seconds between attempts while xenstored is away."""

T = TypeVar("T")


async def insist(
    call: Callable[[], Awaitable[T]], log: logging.Logger | logging.LoggerAdapter[logging.Logger]
) -> T:
    """Call until xenstored answers; `call` must be something that may be done twice."""
    while True:
        try:
            return await call()
        except (XenConnectionError, XenTimeoutError) as error:
            log.warning("XenStore does not answer, trying again: %s", error)
            await asyncio.sleep(STORE_PAUSE)
