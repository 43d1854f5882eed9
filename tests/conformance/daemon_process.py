# SPDX-License-Identifier: MIT
"""`xenpy serve block` as a process of its own, in dom0."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from conformance.forked import Forked

__all__ = ["PATIENCE", "XENPY", "DaemonProcess"]

XENPY = [sys.executable, "-m", "xenpy.cli"]
PATIENCE = 60.0


class DaemonProcess:
    """The daemon, with its files in `directory`.  A context manager; killed in the end.

    Args:
        directory: for its files.
        words: more of its command line.
        environment: more of its environment; an interpreter of its own is started for it.
    """

    def __init__(
        self, directory: Path, *words: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self._directory = directory
        self._words = words
        self._environment = environment
        self._stats = directory / "stats.json"
        self._log = directory / "serve.log"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it serves."""
        self._stats.unlink(missing_ok=True)
        words = [
            "serve", "block", *self._words, "-v", "--rundir", str(self._directory),
            "--stats", str(self._stats),
        ]  # fmt: skip
        self.process: Forked | subprocess.Popen[bytes]
        if not self._environment:
            self.process = Forked(words, self._log)
        else:
            environment = {**os.environ, **self._environment}
            with self._log.open("wb") as log:
                self.process = subprocess.Popen(
                    [*XENPY, *words], stdout=log, stderr=log, env=environment
                )
        deadline = time.monotonic() + PATIENCE
        while "serving" not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        """Its log since `start`."""
        return self._log.read_text()

    def devices(self) -> dict[str, dict[str, int]]:
        """The counters of each device that is served now."""
        self._stats.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + PATIENCE
        while not self._stats.exists():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        found: dict[str, dict[str, int]] = json.loads(self._stats.read_text())["devices"]
        return found

    def stop(self) -> None:
        """End it as systemd does."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE) == 0, self.said()

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)

    def __enter__(self) -> DaemonProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        # pytest shows it when the test failed.
        print(self.said()[-4000:])
