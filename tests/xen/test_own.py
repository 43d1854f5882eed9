# SPDX-License-Identifier: MIT
"""The suite of one's own protocols on a real Xen, domain 0 being its own guest; and `xenpy run`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.bare import asked_twice
from conformance.dom0_disk import xenpy
from conformance.own_suite import *  # noqa: F403 - the tests themselves
from conformance.own_suite import Enter
from conformance.own_tap_suite import *  # noqa: F403 - the tests themselves
from conformance.tapping import tapping
from conformance.xen_env import nothing_left_in_the_hypervisor
from fences import ROOT
from xenpy.backend import NativeXen
from xenpy.cli.new import generate
from xenpy.cli.own import protocol_in
from xenpy.frontend import NativeFrontend
from xenpy.ring_frontend import connect
from xenpy.testing.ring import Pair, loopback
from xenpy.testing.world import this_xen
from xenpy.types import DOM0
from xenpy.vm import disk

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]


@pytest.fixture
def pair() -> Pair:
    return loopback


@pytest.fixture
def enter() -> Enter:
    return this_xen


def test_xenpy_run_serves_a_file_and_its_frontend_asks(tmp_path: Path) -> None:
    """The commands of docs/howto/own-protocol.md, and watch-a-ring.md on them."""
    howto = ROOT / "docs/howto"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{howto}"}
    command = [sys.executable, "-m", "xenpy.cli"]
    with (tmp_path / "log").open("wb") as log:
        serving = subprocess.Popen(
            [*command, "run", howto / "xor.py", "-v", "--suggest"],
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
        )
        try:
            disk.run(*command, "attach", str(howto / "xor.py"), "0")
            asked = subprocess.run(
                [sys.executable, howto / "ask_xor.py"], env=environment, capture_output=True,
                text=True, check=False,
            )  # fmt: skip
            assert asked.stdout == "0 b'HELLO'\n", asked.stderr
            look_on(howto / "xor.py", tmp_path / "xor.capture")
            disk.run(*command, "detach", str(howto / "xor.py"), "0")
        finally:
            serving.terminate()
            said, _ = serving.communicate(timeout=60)
    assert serving.returncode == 0, (tmp_path / "log").read_text()
    assert said.startswith("nothing:")


async def ask_once(file: Path, capture: Path) -> tuple[int, ...]:
    """A request of a protocol in a file, while somebody taps."""
    protocol, _ = protocol_in(str(file))
    async with connect(protocol) as link:
        with link.grant() as page, tapping("xor/0/0", "--write", str(capture)):
            request = protocol.request(7, page.ref, 1)
            await link.request(request)
            return request


def look_on(file: Path, capture: Path) -> None:
    """It is seen by its names."""
    request = asyncio.run(ask_once(file, capture))
    done = xenpy("tap", "--read", str(capture), "--protocol", str(file), "--json")
    assert done.returncode == 0, done.stderr
    _, line, end = map(json.loads, done.stdout.splitlines())
    told = {name: line[name] for name in ("ring", "index", "id", "ref", "key", "status")}
    assert told == {"ring": 0, "index": 0, "id": 7, "ref": request[1], "key": 1, "status": 0}
    assert (end["requests"], end["lost"]) == (1, 0)


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
