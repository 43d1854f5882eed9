# SPDX-License-Identifier: MIT
"""xenvm as its users run it: a command with streams and a status, nothing imported from it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HARNESS = 125
LIMIT = 280.0


@dataclass(frozen=True)
class Xenvm:
    """Runs `vagrant/xenvm`.  Whatever it starts dies with this process."""

    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, *words: str) -> list[str]:
        """The command line, and the promise that nothing outlives the tests.

        A shell lets what it runs in the background ignore Ctrl-C, and we may be that.
        """
        script = os.fspath(ROOT / "vagrant/xenvm")
        tied = ["env", "--default-signal=INT", "setpriv", "--pdeathsig", "KILL", "--"]
        return [*tied, sys.executable, script, *words]

    def run(
        self, *words: str, data: bytes = b"", timeout: float = LIMIT
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end."""
        return subprocess.run(
            self.command(*words), input=data, capture_output=True, timeout=timeout, check=False,
            env={**os.environ, **self.environment},
        )  # fmt: skip

    def output(self, *words: str) -> str:
        """What it prints; it must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode()

    @contextmanager
    def started(self, *words: str) -> Generator[subprocess.Popen[bytes], None, None]:
        """Run it beside the test; killed in the end if it still runs."""
        with subprocess.Popen(
            self.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, **self.environment},
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture(scope="session")
def xenvm() -> Xenvm:
    """The command."""
    return Xenvm()


@pytest.fixture(scope="module")
def instance(xenvm: Xenvm, request: pytest.FixtureRequest) -> Generator[str]:
    """The name of a machine that `up` started for the tests of one module."""
    name = f"{request.module.__name__}.{os.getpid()}"
    xenvm.output("up", "--name", name, "--idle", "900")
    yield name
    xenvm.run("down", "--name", name)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Poll until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """True if a process runs that is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def qemu_of(pid: int) -> int:
    """The process id of the QEMU that the process `pid` started."""
    found = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
        if Path(f"/proc/{child}/comm").read_text().startswith("qemu-system")
    ]
    assert len(found) == 1, found
    return found[0]
