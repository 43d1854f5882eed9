# SPDX-License-Identifier: MIT
"""The suite of one's own protocols on a real Xen, domain 0 being its own guest; and `xenpy run`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.bare import asked_twice
from conformance.own_suite import *  # noqa: F403 - the tests themselves
from conformance.own_suite import Enter
from conformance.xen_env import nothing_left_in_the_hypervisor
from fences import ROOT
from xenpy.backend import NativeXen
from xenpy.cli.new import generate
from xenpy.frontend import NativeFrontend
from xenpy.testing.ring import Pair, loopback
from xenpy.testing.world import this_xen
from xenpy.types import DOM0
from xenpy.vm import disk

__all__ = ["nothing_left_in_the_hypervisor"]


@pytest.fixture
def pair() -> Pair:
    return loopback


@pytest.fixture
def enter() -> Enter:
    return this_xen


def test_xenpy_run_serves_a_file_and_its_frontend_asks(tmp_path: Path) -> None:
    """The commands of docs/howto/own-protocol.md."""
    howto = ROOT / "docs/howto"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{howto}"}
    xenpy = [sys.executable, "-m", "xenpy.cli"]
    with (tmp_path / "log").open("wb") as log:
        serving = subprocess.Popen(
            [*xenpy, "run", howto / "xor.py", "-v", "--suggest"],
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
        )
        try:
            disk.run(*xenpy, "attach", str(howto / "xor.py"), "0")
            asked = subprocess.run(
                [sys.executable, howto / "ask_xor.py"], env=environment, capture_output=True,
                text=True, check=False,
            )  # fmt: skip
            assert asked.stdout == "0 b'HELLO'\n", asked.stderr
            disk.run(*xenpy, "detach", str(howto / "xor.py"), "0")
        finally:
            serving.terminate()
            said, _ = serving.communicate(timeout=60)
    assert serving.returncode == 0, (tmp_path / "log").read_text()
    assert said.startswith("nothing:")


def said_by_the_tests(*words: str | Path, cwd: Path) -> str:
    """What pytest says of a driver's own tests; they must pass."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
            "-p", "xenpy.testing.plugin", "--xen-here", *words,
        ],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_xenpy_new_makes_passes_its_tests(tmp_path: Path) -> None:
    generate("lamp", tmp_path / "lamp")
    assert "24 passed" in said_by_the_tests(cwd=tmp_path / "lamp")


def test_the_suite_of_the_documentation(tmp_path: Path) -> None:
    assert "23 passed" in said_by_the_tests(ROOT / "docs/howto/test_xor_suite.py", cwd=tmp_path)


def test_a_backend_without_the_framework() -> None:
    assert asked_twice(NativeXen(), NativeFrontend(), DOM0, DOM0) == [b"   ", b"\0\0\0"]
