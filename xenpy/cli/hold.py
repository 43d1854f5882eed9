# SPDX-License-Identifier: MIT
"""Hold something until a key, a signal or a time: what verbs do that show what is held."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from contextlib import ExitStack
from types import FrameType, TracebackType
from typing import Final, Self

__all__ = ["Hold"]

LONGEST: Final = 1e6
"""Seconds of one poll(2), which takes a number of 31 bits."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Hold:
    """SIGTERM and SIGINT end the wait in here and do nothing else; a context manager.

    Args:
        keys: a descriptor on which Enter is heard; by default standard input, if there is one.
    """

    def __init__(self, keys: int | None = None) -> None:
        if keys is None and sys.stdin is not None:
            keys = 0  # or else 0 is whatever was opened first
        self._keys = keys
        self._held = ExitStack()
        self._poller = select.poll()

    def __enter__(self) -> Self:
        with ExitStack() as held:
            heard, told = (held.enter_context(one) for one in socket.socketpair())
            for one in (heard, told):
                one.setblocking(False)
            held.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(told.fileno()))
            for number in SIGNALS:
                held.callback(signal.signal, number, signal.signal(number, _pass))
            self._poller.register(heard.fileno(), select.POLLIN)
            if self._keys is not None:
                self._poller.register(self._keys, select.POLLIN)
            self._held = held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.close()

    def wait(self, seconds: float | None, wake: int | None = None) -> bool:
        """Wait for Enter, a signal, or so many seconds; None: for ever.

        The end of the input is no key: a script that has none holds until a signal or the time.

        Args:
            wake: a descriptor that ends the wait as well.

        Returns:
            Whether it was `wake`.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        if wake is not None:
            self._poller.register(wake, select.POLLIN)
        while True:
            left = LONGEST if deadline is None else deadline - time.monotonic()
            some = max(0.0, min(left, LONGEST))
            ready = {fd for fd, _ in self._poller.poll(some * 1000)}
            if self._keys in ready and not self._is_enter():
                ready.discard(self._keys)
            if ready or (deadline is not None and time.monotonic() >= deadline):
                return ready == {wake}

    def _is_enter(self) -> bool:
        if self._keys is None:
            return False
        try:
            said = os.read(self._keys, 4096)
        except OSError:
            said = b""  # there is no input
        if not said:
            self._poller.unregister(self._keys)
        return b"\n" in said


def _pass(_: int, __: FrameType | None) -> None:
    """The descriptor tells."""
