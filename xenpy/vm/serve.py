# SPDX-License-Identifier: MIT
"""In dom0: `xenpy serve block` as a child, and what it has counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from xenpy.vm.disk import CommandError

__all__ = ["Daemon"]


class Daemon:
    """A context manager: it serves once entered, and ends in good order.

    Its disks are detached by then, or else the next daemon takes them over.

    Args:
        directory: where its log and its counters go; made if it is not there.
        words: of its command line.
        environment: added to ours.
        patience: seconds to wait for each thing that it does.

    Attributes:
        log: what it says.
    """

    def __init__(
        self,
        directory: Path,
        *words: str,
        environment: Mapping[str, str] | None = None,
        patience: float,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.log = directory / "serve.log"
        self._stats = directory / "stats.json"
        self._patience = patience
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["xenpy", "serve", "block", *words, "--stats", os.fspath(self._stats)],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            deadline = time.monotonic() + self._patience
            while "serving" not in self.log.read_text():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = self.log.read_text()[-1500:]
                    raise CommandError(f"xenpy serve did not start: {said}")
                time.sleep(0.05)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def devices(self) -> Mapping[str, Mapping[str, int]]:
        """The counters of each device, by its name.

        Raises:
            CommandError: it does not write them.
        """
        self._stats.unlink(missing_ok=True)
        self._process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + self._patience
        while not self._stats.exists():
            if time.monotonic() > deadline:
                raise CommandError("the daemon wrote no counters")
            time.sleep(0.02)
        found: dict[str, dict[str, int]] = json.loads(self._stats.read_text())["devices"]
        return found

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            message = f"xenpy serve did not end within {self._patience:.0f} s"
            raise CommandError(message) from None
