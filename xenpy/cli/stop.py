# SPDX-License-Identifier: MIT
"""Run until told to stop: what verbs that stay in the foreground do."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress

__all__ = ["stopped"]


async def stopped(work: Coroutine[object, object, None]) -> None:
    """Run `work` until it returns or raises, or SIGTERM or SIGINT comes, which cancels it: once,
    since it may have things to put in order."""
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(work)

    def stop() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        running.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    with suppress(asyncio.CancelledError):
        await running
