# SPDX-License-Identifier: MIT
"""`xenpy ls` and `xenpy doctor` in dom0, beside Linux's own backend."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.block_front import eventually
from conformance.daemon_process import XENPY, DaemonProcess
from conformance.stock_backends import Nodes, a_loop, blkback_module, unload_blkback
from conformance.xen_env import nothing_left_in_the_hypervisor
from xenpy.drivers.block.front import BlockDevice
from xenpy.vm import disk
from xenpy.xenstore import Store

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]

MIB = 1 << 20
AUTOPROBE = Path("/sys/bus/xen-backend/drivers_autoprobe")


def xenpy(*words: str, status: int = 0) -> Any:
    """What it prints as JSON."""
    done = subprocess.run(
        [*XENPY, *words, "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


def about(topic: str, *words: str, status: int = 0) -> dict[str, str]:
    (found,) = [
        one for one in xenpy("doctor", *words, status=status)["findings"] if one["topic"] == topic
    ]
    assert isinstance(found, dict)
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 * MIB))
    return path


@pytest.fixture
def blkback() -> Iterator[None]:
    with blkback_module():
        yield
    unload_blkback()


def test_dom0_lacks_nothing() -> None:
    said = xenpy("doctor")
    assert said["domid"] == 0
    levels = {one["topic"]: one["level"] for one in said["findings"]}
    assert "problem" not in levels.values()
    for topic in ("xen", "evtchn", "gntdev", "gntalloc", "xenconsoled", "xenstore"):
        assert levels[topic] == "ok", said
    version = "".join(
        f"{Path('/sys/hypervisor/version', one).read_text().strip()}." for one in ("major", "minor")
    )
    assert f"Xen {version[:-1]}, " in about("xen")["text"]


def test_blkback_competes_for_vbd(blkback: None, tmp_path: Path) -> None:
    assert about("vbd")["level"] == "note"
    with DaemonProcess(tmp_path, "--kind", "vbd"):
        words = ("--rundir", str(tmp_path))
        assert "serves too" in about("vbd", *words, status=1)["text"]
        AUTOPROBE.write_text("0")
        try:
            assert about("vbd", *words)["level"] == "ok"
        finally:
            AUTOPROBE.write_text("1")


def test_ls_shows_whoever_serves(blkback: None, image: Path, tmp_path: Path) -> None:
    words = ("block", "0", "vdev=xvdi", f"target={tmp_path / 'ours.img'}")
    (tmp_path / "ours.img").write_bytes(bytes(8 * MIB))
    with DaemonProcess(tmp_path) as daemon, a_loop(image) as loop:
        disk.run(*XENPY, "attach", *words)
        try:
            (theirs, ours), shown = asyncio.run(_both_used(loop, str(tmp_path)))
        finally:
            disk.run(*XENPY, "detach", *words[:3])
        served = f"xenpy {daemon.process.pid}"
    assert (theirs["kind"], theirs["served_by"]) == ("vbd", "xen-blkback")
    assert (ours["kind"], ours["served_by"]) == ("vbd3", served)
    for one in (theirs, ours):
        assert one["backend"]["state"] == one["frontend"]["state"] == "CONNECTED"
        assert one["counters"]["rd_req"] > 0
        assert one["counters"]["rd_sect"] >= 2 * MIB // 512
        assert one["rings"] == 1
        assert {"persistent", "flush-cache"} & set(one["features"])
        assert one["protocol"] == "x86_64-abi"
    assert {one["device"] for one in shown["devices"]} == {theirs["device"], ours["device"]}
    assert all(one["rates"]["rd_req"] == 0 for one in shown["devices"])
    (load,) = shown["daemons"]
    assert load["pid"] == daemon.process.pid
    assert load["resident"] > MIB


async def _both_used(loop: str, rundir: str) -> tuple[list[Any], Any]:
    """What `ls` and `top` show of a disk of blkback's and of ours, once 2 MiB were read from
    each: from the first by a frontend in Python, from ours by dom0's xen-blkfront."""
    async with Store.open() as store:
        nodes = Nodes(store, "vbd")
        await nodes.make({"type": "phy", "params": loop, "mode": "w"})
        try:
            await nodes.plug(loop)
            async with BlockDevice(store, nodes.front) as theirs:
                assert not any(await theirs.pread(2 * MIB, 0))
                eventually(Path("/dev/xvdi").exists)
                disk.run("dd", "if=/dev/xvdi", "of=/dev/null", "iflag=direct", "bs=1M", "count=2")
                words = ("vbd", "vbd3", "--rundir", rundir)
                listed = await asyncio.to_thread(xenpy, "ls", *words)
                shown = await asyncio.to_thread(xenpy, "top", *words, "--count", "1")
        finally:
            await nodes.remove()
    assert isinstance(listed, list)
    return listed, shown
