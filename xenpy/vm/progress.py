# SPDX-License-Identifier: MIT
"""Progress on standard error: silent when fast, with elapsed times when not.

A step that is over within two seconds prints nothing.  A longer one says what it is
doing, repeats that with the elapsed time, and says how long it took.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["note", "quiet", "show_after", "step"]

REPEAT_EVERY = 15.0

_quiet = False
_show_after = 2.0


def quiet(silent: bool) -> None:
    """Silence progress (not errors), for `--quiet`."""
    global _quiet
    _quiet = silent


def show_after(seconds: float) -> None:
    """How long a step may take before anything is said of it."""
    global _show_after
    _show_after = seconds


def note(message: str) -> None:
    """Say something that the user should know now."""
    if not _quiet:
        print(f"xenvm: {message}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Generator[None, None, None]:
    """Run the body as one step of work called `what`."""
    began = time.monotonic()
    done = threading.Event()
    shown = threading.Event()

    def report() -> None:
        if done.wait(_show_after):
            return
        shown.set()
        note(f"{what} ...")
        while not done.wait(REPEAT_EVERY):
            note(f"{what} ... {time.monotonic() - began:.0f} s")

    reporter = threading.Thread(target=report, name="progress", daemon=True)
    reporter.start()
    try:
        yield
    except BaseException:
        done.set()
        reporter.join()
        if shown.is_set():
            note(f"{what}: failed after {time.monotonic() - began:.1f} s")
        raise
    done.set()
    reporter.join()
    if shown.is_set():
        note(f"{what}: done in {time.monotonic() - began:.1f} s")
