# SPDX-License-Identifier: MIT
"""A dom0 for the tests of `pytest --xen` that is a process on this host.

A project's conftest.py that imports `pytest_xen_dom0` from here has it instead of the nested VM;
everything else is the real thing.  Words in $STAND_IN make it fail in one way or another.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xenpy.testing.remote.order import Dom0, Dom0Maker, Order, Section
from xenpy.testing.remote.project import Project
from xenpy.vm.errors import VmDiedError, VmError

PROGRAM = """\
import sys
from pathlib import Path
from xenpy.testing.remote import dom0, logs
logs.Logs.__init__.__defaults__ = (Path(sys.argv.pop(1)), Path("/dev/null"))
sys.exit(dom0.main())
"""
DIED = "QEMU was killed by SIGKILL"


class StandIn:
    """A `Dom0`.  A test that makes a file `die` there kills the machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, order: Order, events: int) -> int:
        arguments = [*order.arguments, "-p", "stand_in_here"]
        changed = Order(**{**vars(order), "arguments": arguments})
        file = self.directory / "order.json"
        file.write_text(changed.to_json())
        path = [*order.path, *sys.path]
        command = [sys.executable, "-c", PROGRAM, self.directory / "log"]
        command += [] if order.live else [self.directory / "said"]
        with file.open("rb") as handle:
            self.process = subprocess.Popen(
                command, cwd=order.directory, stdin=handle, stdout=events,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path),
                     "STAND_IN_DIRECTORY": str(self.directory)},
            )  # fmt: skip
            status = self.process.wait()
        if (self.directory / "die").exists():
            raise VmDiedError(DIED, details="(XEN) the last line", hint="a hint")
        return status if status >= 0 else 128 - status

    def console(self) -> str:
        path = self.directory / "console"
        return path.read_text() if path.exists() else ""

    def last_words(self, *, alive: bool) -> list[Section]:
        said = self.directory / "said"
        return [("said", said.read_text())] if alive and said.exists() else []

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


class Maker:
    """Makes them, and writes down which in `machines` beside the project."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made = 0

    @contextmanager
    def __call__(self, release: str) -> Generator[Dom0, None, None]:
        with (self.root / "machines").open("a") as file:
            file.write(f"{release}\n")
        if "no-machine" in os.environ.get("STAND_IN", ""):
            raise VmError("no disk space", hint="free some", details="a line of a log")
        self.made += 1
        directory = self.root / ".machine" / str(self.made)
        (directory / "log").mkdir(parents=True)
        one = StandIn(directory)
        try:
            yield one
        finally:
            one.end()


def pytest_xen_dom0(config: pytest.Config, project: Project) -> Dom0Maker:
    return Maker(project.root)
