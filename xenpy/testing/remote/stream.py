# SPDX-License-Identifier: MIT
"""The events of an order as they come, and a clear end to waiting for them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from xenpy.testing.remote.order import Dom0, Event, Order
from xenpy.vm.errors import VmError

__all__ = ["Failure", "Stream"]

JOIN_TIMEOUT = 60.0
"""Seconds for ssh to end after its last word: it finds out whether the machine has died."""


class Failure(Exception):
    """No more events will come, though there should.

    Attributes:
        details: lines that say more, such as the end of the console.
        alive: dom0 may be well, and be asked for its logs.
    """

    def __init__(self, message: str, *, details: str = "", alive: bool = False) -> None:
        super().__init__(message)
        self.details = details
        self.alive = alive


class Stream:
    """An order that is being carried out.  A context manager."""

    def __init__(self, dom0: Dom0, order: Order, patience: float) -> None:
        """`patience`: seconds without an event that are too many."""
        self._dom0 = dom0
        self._order = order
        self._patience = patience
        self._reader, self._writer = os.pipe()
        self._status: int | None = None
        self._error: VmError | None = None
        # A daemon: when we give up, nobody waits for its ssh, which dies with the machine.
        self._thread = threading.Thread(target=self._run, name="pytest-in-dom0", daemon=True)

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._reader)

    def _run(self) -> None:
        try:
            self._status = self._dom0.run(self._order, self._writer)
        except VmError as error:
            self._error = error
        except (OSError, subprocess.SubprocessError) as error:
            self._error = VmError(f"{type(error).__name__}: {error}")
        finally:
            os.close(self._writer)

    def events(self) -> Iterator[Event]:
        """Up to the one that says `end`.  Raises Failure if that never comes."""
        rest = b""
        last = time.monotonic()
        while True:
            left = last + self._patience - time.monotonic()
            if left <= 0 or not select.select([self._reader], [], [], left)[0]:
                raise Failure(f"nothing came from dom0 for {self._patience:.0f} s", alive=True)
            received = os.read(self._reader, 1 << 16)
            if not received:
                raise self._why_it_ended()
            last = time.monotonic()
            *lines, rest = (rest + received).split(b"\n")
            for line in lines:
                event = Event.from_line(line)
                if event is not None:
                    yield event
                    if event.kind == "end":
                        return

    def _why_it_ended(self) -> Failure:
        self._thread.join(JOIN_TIMEOUT)
        if self._error is not None:
            hint = f" ({self._error.hint})" if self._error.hint else ""
            return Failure(f"{self._error}{hint}", details=self._error.details)
        if self._status is None:
            return Failure("the connection to dom0 ended, and nothing says why")
        how = f"ended with status {self._status}"
        with suppress(ValueError):
            how = f"was killed by {signal.Signals(self._status - 128).name}"
        return Failure(f"pytest in dom0 {how}, before its end", alive=True)
