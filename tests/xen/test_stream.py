# SPDX-License-Identifier: MIT
"""The suite of protocols of bytes on a real Xen, domain 0 being its own guest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, XENPY
from conformance.stream_suite import *  # noqa: F403 - the tests themselves
from conformance.xen_env import nothing_left_in_the_hypervisor
from fences import ROOT
from xenpy.testing.stream import Streams, loopback
from xenpy.vm import disk

__all__ = ["nothing_left_in_the_hypervisor"]


def test_xenpy_run_serves_a_file_and_its_frontend_talks(tmp_path: Path) -> None:
    """The commands of docs/howto/own-protocol.md."""
    howto = ROOT / "docs/howto"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{howto}"}
    with (tmp_path / "log").open("wb") as log:
        words = [*XENPY, "run", howto / "shout.py", "-v"]
        serving = subprocess.Popen(words, stderr=log, env=environment)
        try:
            disk.run(*XENPY, "attach", str(howto / "shout.py"), "0")
            talked = subprocess.run(
                [sys.executable, howto / "whisper.py"], env=environment, capture_output=True,
                text=True, check=False,
            )  # fmt: skip
            assert talked.stdout == "b'HELLO'\n", talked.stderr
            disk.run(*XENPY, "detach", str(howto / "shout.py"), "0")
        finally:
            serving.terminate()
            serving.wait(PATIENCE)
    assert serving.returncode == 0, (tmp_path / "log").read_text()


@pytest.fixture
def streams() -> Streams:
    return loopback
