# SPDX-License-Identifier: MIT
"""docs/howto/xor.py and ask_xor.py as they are, in stock guests: with the backend in dom0, and with
backend and frontend in two guests, as tests/drivers/test_own_guests_fake.py has them over fakes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, XENPY, DaemonProcess
from conformance.guests import inside
from fences import ROOT
from xenpy.vm import disk

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

XOR = "docs/howto/xor.py"
ASK = "python3 docs/howto/ask_xor.py"
HELLO = "0 b'HELLO'\n"
HOLD = f"""
import asyncio, sys
sys.path.insert(0, "{ROOT}/docs/howto")
from xor import Xor
from xenpy import connect
async def main():
    async with connect(Xor.protocol):
        print("connected", flush=True)
        await asyncio.sleep(3600)
asyncio.run(main())
"""
"""A frontend that stays."""


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the guests' root file systems come from."""
    with DaemonProcess(tmp_path_factory.mktemp("disks"), "force=1"):
        yield


@contextmanager
def guest(name: str) -> Iterator[str]:
    """A guest with Python, as the tutorial makes it; its domid."""
    try:
        disk.run("sh", f"{ROOT}/docs/tutorial/guest_with_python.sh", name)
        yield disk.domid(name)
    finally:
        subprocess.run(["xl", "destroy", name], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def north(disks: None) -> Iterator[str]:
    with guest("north") as domid:
        yield domid


def xenpy(*words: str) -> None:
    disk.run(*XENPY, *words, "--timeout", str(PATIENCE))


def state_of(path: str) -> str:
    done = subprocess.run(["xenstore-read", path], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def until_state(path: str, state: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while (found := state_of(path)) != state:
        assert time.monotonic() < deadline, f"{path} is {found!r}, not {state!r}"
        time.sleep(0.1)


def test_the_frontend_in_a_guest(north: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        serving = subprocess.Popen(
            [*XENPY, "run", ROOT / XOR, "--rundir", tmp_path], stderr=log, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        try:
            xenpy("attach", str(ROOT / XOR), north)
            for _ in range(2):
                assert inside("north", ASK) == HELLO
            xenpy("detach", str(ROOT / XOR), north)
        finally:
            serving.terminate()
            serving.wait(PATIENCE)
    said = (tmp_path / "log").read_text()
    assert serving.returncode == 0, said
    assert f"xor/{north}/0: connected" in said


def test_a_guest_looks_at_itself(north: str) -> None:
    said = json.loads(inside("north", "xenpy doctor --json || true"))
    assert said["domid"] == int(north)
    levels = {one["topic"]: one["level"] for one in said["findings"]}
    assert levels["xenstore"] == levels["evtchn"] == levels["gntalloc"] == "ok", said
    assert not levels.keys() & {"xl", "xenstored", "xenconsoled"}
    devices = json.loads(inside("north", "xenpy ls --json"))
    assert {one["domid"] for one in devices} == {int(north)}
    (root,) = [one for one in devices if one["kind"] != "vif"]
    assert (root["domid"], root["kind"]) == (int(north), "vbd3")
    assert root["backend"]["state"] == root["frontend"]["state"] == "CONNECTED"
    assert root["served_by"] == ""


def test_both_halves_in_guests(north: str) -> None:
    with guest("south") as south:
        inside("south", f"xenpy run {XOR} -v > /tmp/log 2>&1 < /dev/null &")
        words = [str(ROOT / XOR), north, "--backend", south]
        state = f"/local/domain/{south}/backend/xor/{north}/0/state"
        xenpy("attach", *words)
        for _ in range(2):
            assert inside("north", ASK) == HELLO
        xenpy("detach", *words)

        # A frontend's guest that dies, with nobody to tell a driver domain but the nodes.
        xenpy("attach", *words)
        with guest("west") as west:
            third = [str(ROOT / XOR), west, "--backend", south]
            xenpy("attach", *third)
            inside("west", f"python3 -c '{HOLD}' > /tmp/hold 2>&1 < /dev/null &")
            until_state(f"/local/domain/{south}/backend/xor/{west}/0/state", "4")
        until_state(f"/local/domain/{south}/backend/xor/{west}/0/state", "6")
        xenpy("detach", *third)
        assert inside("north", ASK) == HELLO
        said = inside("south", "cat /tmp/log")
        assert "cannot" not in said, said

        # The backend's: what is left of the device is for whoever made it to take away.
        until_state(state, "6")
    until_state(state, "")
    xenpy("detach", *words)
    with pytest.raises(disk.CommandError, match="there is no device"):
        xenpy("detach", *words)
