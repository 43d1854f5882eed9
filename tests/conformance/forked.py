# SPDX-License-Identifier: MIT
"""`xenpy` as a process of its own that need not start an interpreter.

An interpreter with xenpy in it takes two to three seconds to start under emulation, and some
tests start a daemon two hundred times.  So a server that has imported it all, and has opened
nothing of Xen's, forks each of them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from xenpy.cli.main import main

__all__ = ["Forked"]

# pytest is what a forked process takes for the main module.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pytest", "xenpy.drivers.block.driver", __name__])


def _run(words: Sequence[str], log: str) -> None:
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(words))


class Forked:
    """`xenpy WORDS`, with the interface of subprocess.Popen as far as it is needed.

    Args:
        words: of the command line.
        log: where its output goes; emptied.
    """

    def __init__(self, words: Sequence[str], log: Path) -> None:
        log.write_bytes(b"")
        self._status: int | None = None
        self._process = _SERVER.Process(target=_run, args=(list(words), str(log)), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit status, or minus the signal; None while it runs."""
        if self._status is None:
            self._status = self._process.exitcode
            if self._status is not None:
                # Now, and not when it is collected: other tests count descriptors.
                self._process.close()
        return self._status

    def wait(self, timeout: float) -> int:
        if self._status is None:
            self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired("xenpy", timeout)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
