# SPDX-License-Identifier: MIT
"""The page on vchan, typed in, and its programs, in dom0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from conformance.typed_page import section, type_in
from conformance.xen_env import nothing_left_in_the_hypervisor
from fences import ROOT

__all__ = ["nothing_left_in_the_hypervisor"]

PAGE = Path("docs/howto/vchan.md")


def test_the_commands() -> None:
    typed = section(PAGE, "Try it in dom0")
    assert len(typed) == 6
    type_in(typed)


def test_the_programs() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [sys.executable, "docs/howto/vchan_shout.py", "0", "data/shout"], cwd=ROOT, env=environment
    )
    try:
        for line in ("hello", "again"):
            asked = subprocess.run(
                [sys.executable, "docs/howto/vchan_ask.py", "0", "data/shout", line],
                cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert asked.stdout == f"{line.upper()}\n", asked.stderr
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def test_the_program_without_an_event_loop() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(
        [sys.executable, "docs/howto/vchan_blocking.py", "0", "data/echo"],
        cwd=ROOT, env=environment, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        for line in ("hello", "again"):
            asked = subprocess.run(
                [sys.executable, "docs/howto/vchan_ask.py", "0", "data/echo", line],
                cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert asked.stdout == f"{line}\n", asked.stderr
    finally:
        server.send_signal(signal.SIGINT)
        _, said = server.communicate(timeout=60)
    assert said.endswith(b"KeyboardInterrupt\n")
