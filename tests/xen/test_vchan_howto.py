# SPDX-License-Identifier: MIT
"""The page on vchan, typed in, and its programs, in dom0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from conformance.typed_page import section, type_in
from conformance.xen_env import nothing_left_in_the_hypervisor
from fences import ROOT

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]

PAGE = Path("docs/howto/vchan.md")


def test_the_commands() -> None:
    typed = section(PAGE, "Try it in dom0")
    assert len(typed) == 6
    type_in(typed)


def answers(program: str, path: str, lines: Sequence[str]) -> tuple[list[str], str]:
    """What `vchan_ask.py` prints of each line's answer, and the server's last words: Ctrl-C."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [sys.executable, f"docs/howto/{program}", "0", path],
        cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said: list[str] = []
    try:
        for line in lines:
            asked = subprocess.run(
                [sys.executable, "docs/howto/vchan_ask.py", "0", path, line],
                cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            said.append(asked.stdout or asked.stderr)
    finally:
        server.send_signal(signal.SIGINT)
        _, last = server.communicate(timeout=60)
    return said, last


def test_the_programs() -> None:
    said, _ = answers("vchan_shout.py", "data/shout", ["hello", "again"])
    assert said == ["HELLO\n", "AGAIN\n"]


def test_the_program_without_an_event_loop() -> None:
    said, last = answers("vchan_blocking.py", "data/echo", ["hello", "again"])
    assert said == ["hello\n", "again\n"]
    assert last.endswith("KeyboardInterrupt\n")
