# SPDX-License-Identifier: MIT
"""The pty that xenconsoled keeps while somebody else serves the console.

What is typed there would kill it: it has the bytes put into the ring and then notifies the guest
through an event-channel handle that it has closed, which is NULL (handle_tty_read and
console_create_ring of tools/console/daemon/io.c, Xen 4.17 to 4.20 and later).  So nothing may
come through that pty meanwhile: its output is stopped, as Ctrl-S would stop it, and whoever
types into it waits.
"""

from __future__ import annotations

import asyncio
import os
import re
import termios
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Final

__all__ = ["silence", "speak"]

DRAIN: Final = 0.1
"""Seconds for xenconsoled to read what has been typed already."""


async def silence(path: str) -> None:
    """Let nothing more be typed there.  What xenconsoled does not read meanwhile, for a guest
    that does not read either, is thrown away.  A path that is no pty's is left alone."""
    with _opened(path) as fd:
        if fd is not None:
            termios.tcflow(fd, termios.TCOOFF)
            await asyncio.sleep(DRAIN)
            termios.tcflush(fd, termios.TCOFLUSH)


def speak(path: str) -> None:
    """Let what is typed there come through again."""
    with _opened(path) as fd:
        if fd is not None:
            termios.tcflow(fd, termios.TCOON)


@contextmanager
def _opened(path: str) -> Generator[int | None]:
    if not re.fullmatch(r"/dev/pts/[0-9]{1,9}", path):
        yield None
        return
    fd = None
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)
