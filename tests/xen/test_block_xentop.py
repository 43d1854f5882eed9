# SPDX-License-Identifier: MIT
"""Stock xentop shows what a disk has done; Xen 4.17's knows no disks of kind vbd3."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, DaemonProcess
from conformance.dom0_disk import attached
from xenpy.drivers.block.vdev import parse_vdev
from xenpy.vm import disk

SECTORS = (16 << 20) // 512
KNOWS_VBD3 = (4, 19)
DEVID = parse_vdev("xvdz")
LINE = re.compile(rf"VBD .*?{DEVID} .*RD:\s*(\d+)\s+WR:\s*(\d+)\s+RSECT:\s*(\d+)\s+WSECT:\s*(\d+)")
"""Of `xentop -x`."""


@pytest.mark.parametrize("tier", ["worker", "callback", "batch"])
def test_xentop_shows_what_the_disk_has_done(tmp_path: Path, tier: str) -> None:
    disk.run("modprobe", "xen-blkfront")
    with DaemonProcess(tmp_path, f"tier={tier}") as daemon:
        with attached("memory:16M", SECTORS) as path:
            with path.open("r+b") as file:
                file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
            Path("/proc/sys/vm/drop_caches").write_text("1")
            with path.open("rb") as file:
                file.read(1 << 20)
            (counters,) = daemon.devices().values()
            want = [counters[key] for key in ("rd_req", "wr_req", "rd_sect", "wr_sect")]
            pid = daemon.process.pid
            directory = f"/local/domain/0/backend/vbd3/0/{DEVID}"
            assert disk.run("xenstore-read", f"{directory}/kthread-pid").strip() == str(pid)
            if disk.xen_version() >= KNOWS_VBD3:
                said = disk.run("xentop", "-b", "-x", "-i", "1")
                assert shown_of_xvdz(said) == want
        deadline = time.monotonic() + PATIENCE
        while Path(f"/dev/shm/td3-{pid}").exists():
            assert time.monotonic() < deadline, daemon.said()
            time.sleep(0.1)


def shown_of_xvdz(said: str) -> list[int]:
    """What xentop says of xvdz: reads, writes, sectors read, sectors written."""
    found = LINE.search(said)
    assert found is not None, said
    return [int(number) for number in found.groups()]
