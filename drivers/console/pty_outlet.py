# SPDX-License-Identifier: MIT
"""A console on a pseudo terminal, as xenconsoled gives it to `xl console`."""

from __future__ import annotations

import asyncio
import os
import pty
import tty
from typing import Final

from xenpy.drivers.console.backlog import Backlog
from xenpy.drivers.console.outlet import Outlet, Typist

__all__ = ["PtyOutlet"]

READ_LIMIT: Final = 1024
WRITE_LIMIT: Final = 4096


class PtyOutlet(Outlet):
    """The master's side of a pty that nobody may be looking at.

    Args:
        typist: who gets what is typed.

    Attributes:
        name: of the slave, e.g. "/dev/pts/3".

    Raises:
        OSError: there is no pty to be had.
    """

    def __init__(self, typist: Typist) -> None:
        self._typist = typist
        # The slave stays open here too: a master without one reads EIO.
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.name = os.ttyname(self._slave)
        self._backlog = Backlog()
        self._stuck = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._master, self._typed)
        self._closed = False

    @property
    def lost(self) -> int:
        return self._backlog.lost

    def put(self, content: bytes) -> None:
        self._backlog.add(content)
        if not self._stuck:
            self._flush()

    def _flush(self) -> None:
        waiting = self._backlog
        try:
            while waiting:
                waiting.took(os.write(self._master, waiting.first(WRITE_LIMIT)))
        except BlockingIOError:
            # The kernel holds 4 KiB for whoever opens the slave; the rest waits here.
            if not self._stuck:
                self._stuck = True
                self._loop.add_writer(self._master, self._flush)
        else:
            if self._stuck:
                self._stuck = False
                self._loop.remove_writer(self._master)

    def _typed(self) -> None:
        try:
            content = os.read(self._master, READ_LIMIT)
        except BlockingIOError:
            return
        self._typist.typed(content)

    def pause(self) -> None:
        self._loop.remove_reader(self._master)

    def resume(self) -> None:
        self._loop.add_reader(self._master, self._typed)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._master)
        self._loop.remove_writer(self._master)
        os.close(self._master)
        os.close(self._slave)
