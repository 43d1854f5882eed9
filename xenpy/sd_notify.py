# SPDX-License-Identifier: MIT
"""Tells the service manager how a daemon does, by systemd's protocol: sd_notify(3).

Nothing happens where no manager asks.  Its own ten lines rather than libsystemd: the protocol is
documented to be spoken so ("Notes"), and the core needs no other library.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

__all__ = ["Manager"]

log = logging.getLogger(__name__)

MICROSECONDS: Final = 1_000_000
PATIENCE: Final = 1.0
"""Seconds for a manager that has much to hear: what is not said again must arrive."""
SHARE: Final = 0.5
"""Of the time that the manager waits: sd_watchdog_enabled(3) recommends half."""


class Manager:
    """The service manager of this process, or nobody.

    Args:
        environment: NOTIFY_SOCKET, and WATCHDOG_USEC with WATCHDOG_PID.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        wanted = environment.get("WATCHDOG_USEC", "")
        whose = environment.get("WATCHDOG_PID", "")
        ours = not whose or whose == str(os.getpid())
        self._watchdog = int(wanted) / MICROSECONDS if wanted.isdigit() and ours else 0.0

    def ready(self, status: str) -> None:
        """It serves, or serves again after `reloading`."""
        self._tell(f"READY=1\nSTATUS={status}", PATIENCE)

    def reloading(self) -> None:
        """It reads its configuration again."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={now}", PATIENCE)

    def stopping(self) -> None:
        """It ends."""
        self._tell("STOPPING=1", PATIENCE)

    async def keep_alive(self) -> None:
        """Say every so often that the event loop turns; returns at once if nobody wants to know,
        so that an idle daemon that nobody watches has no wake-up."""
        while self._watchdog > 0:
            self._tell("WATCHDOG=1", 0.0)
            await asyncio.sleep(self._watchdog * SHARE)

    def _tell(self, text: str, timeout: float) -> None:
        if not self._address:
            return
        # "@": a name in the abstract namespace, which begins with a NUL.
        address = self._address.replace("@", "\0", 1) if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                one.settimeout(timeout)
                one.sendto(text.encode(), address)
        except OSError as error:
            log.warning("the service manager does not hear %s: %s", text.split("\n")[0], error)
