# SPDX-License-Identifier: MIT
"""Real guests, made by xl, on disks of `xenpy serve block`: stock Debian kernels throughout."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from conformance.daemon_process import PATIENCE, XENPY, DaemonProcess
from conformance.guests import (
    FILE_SYSTEM,
    MIB,
    daemon,
    domains,
    guest,
    image,
    inside,
    make_image,
    until_unserved,
)
from xenpy.vm import disk

__all__ = ["daemon", "image"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_file_system_of_a_guest_is_in_the_image(
    daemon: DaemonProcess, image: Path, kind: str
) -> None:
    with guest(f"files{kind}", image, "--type", kind) as name:
        said = inside(name, FILE_SYSTEM).split()[0]
        assert inside(name, "basename $(readlink /sys/block/xvda/device/driver)") == "vbd\n"
        (counters,) = daemon.devices().values()
        assert counters["wr_sect"] * 512 >= 8 * MIB
        assert (counters["errors"], counters["refused"]) == (0, 0)
    assert not Path("/sys/module/xen_blkback").exists()
    until_unserved(daemon)
    disk.run("e2fsck", "-fn", str(image))
    content = subprocess.run(
        ["debugfs", "-R", "cat /file", image], check=True, capture_output=True
    ).stdout
    assert hashlib.sha256(content).hexdigest() == said


def fio(name: str, operations: int, seed: int) -> dict[str, Any]:
    """Random reads and writes with checksums by a witness that nobody here wrote."""
    words = [
        "fio", "--name=verify", "--filename=/dev/xvda", "--ioengine=libaio", "--direct=1",
        "--iodepth=32", "--rw=randrw", "--bsrange=4k-44k", "--bs_unaligned=0", "--blockalign=4k",
        "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256", "--time_based=0",
        f"--number_ios={operations}", "--io_size=4g", "--size=192m", f"--randseed={seed}",
        "--output-format=json",
    ]  # fmt: skip
    text = inside(name, " ".join(words))
    found: dict[str, Any] = json.loads(text[text.index("{") :])["jobs"][0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("operations", [2_000, pytest.param(30_000, marks=pytest.mark.long)])
def test_fio_finds_every_checksum_right(
    daemon: DaemonProcess, tmp_path: Path, operations: int
) -> None:
    big = make_image(tmp_path / "big.img", 192)
    with guest("fio", big, "--fio") as name:
        job = fio(name, operations, seed=20261124)
        assert job["error"] == 0
        total = job["read"]["total_ios"] + job["write"]["total_ios"]
        assert total >= operations
        assert min(job["read"]["total_ios"], job["write"]["total_ios"]) > operations // 4
        (counters,) = daemon.devices().values()
        assert (counters["errors"], counters["refused"]) == (0, 0)
        assert counters["rd_req"] + counters["wr_req"] >= total
        print(f"{total} operations, {counters}")


@pytest.mark.slow
def test_a_guest_destroyed_in_mid_write_leaves_no_trace(daemon: DaemonProcess, image: Path) -> None:
    with guest("doomed", image) as name:
        inside(name, "dd if=/dev/zero of=/dev/xvda bs=1M count=4 conv=fsync 2>/dev/null")
        writing = "(while :; do dd if=/dev/zero of=/dev/xvda bs=64k; done) > /dev/null 2>&1 &"
        inside(name, writing)
        (before,) = daemon.devices().values()
        deadline = time.monotonic() + PATIENCE
        while next(iter(daemon.devices().values()))["wr_req"] < before["wr_req"] + 50:
            assert time.monotonic() < deadline, "the guest does not write"
        disk.run("xl", "destroy", name)
        until_unserved(daemon)
        deadline = time.monotonic() + PATIENCE
        while domains() != ["Domain-0"]:
            assert time.monotonic() < deadline, domains()
            time.sleep(0.1)
    with guest("next", image) as name:
        inside(name, FILE_SYSTEM)
        (counters,) = daemon.devices().values()
        assert counters["errors"] == 0


@pytest.mark.slow
def test_a_daemon_is_restarted_under_a_writing_guest(daemon: DaemonProcess, image: Path) -> None:
    """SIGTERM parks: the guest's I/O waits, and not one request is lost."""
    with guest("patient", image) as name:
        writing = (
            "for n in $(seq 16); do dd if=/dev/zero bs=64k count=16 2>/dev/null | "
            "tr '\\0' \"\\\\$(printf %o $((n + 64)))\" > /tmp/piece; "
            "dd if=/tmp/piece of=/dev/xvda bs=64k seek=$((n * 16)) oflag=direct || exit; "
            "done; sync; echo written > /tmp/done"
        )
        inside(name, f"({writing}) > /dev/null 2>&1 &")
        for _ in range(3):
            daemon.stop()
            daemon.start()
            time.sleep(0.5)
        deadline = time.monotonic() + PATIENCE
        while "written" not in inside(name, "cat /tmp/done 2>/dev/null || true"):
            assert time.monotonic() < deadline, "the guest's writes did not end"
            time.sleep(0.2)
        (counters,) = daemon.devices().values()
        assert counters["errors"] == 0
    content = image.read_bytes()
    for number in range(1, 17):
        assert content[number * MIB : (number + 1) * MIB] == bytes([number + 64]) * MIB, number


@pytest.mark.slow
def test_disks_come_and_go_while_the_guest_runs(
    daemon: DaemonProcess, image: Path, tmp_path: Path
) -> None:
    other = make_image(tmp_path / "other.img", 16)
    with guest("busy", image) as name:
        for turn in range(3):
            disk.attach(name, other, "xvdb", "r" if turn == 1 else "w")
            size = inside(
                name, "while [ ! -b /dev/xvdb ]; do sleep 0.1; done; cat /sys/block/xvdb/size"
            )
            assert size == f"{16 * MIB // 512}\n"
            assert inside(name, "cat /sys/block/xvdb/ro") == f"{int(turn == 1)}\n"
            assert len(daemon.devices()) == 2
            disk.detach(name, "xvdb")
            inside(name, "while [ -b /dev/xvdb ]; do sleep 0.1; done")
        inside(name, FILE_SYSTEM)
        # The image of a running guest is refused to a second disk, and xl says who has it.
        with pytest.raises(disk.CommandError, match="in use by another disk of this daemon"):
            disk.attach(name, image, "xvdc")


def test_a_second_daemon_is_refused(daemon: DaemonProcess, tmp_path: Path) -> None:
    refused = subprocess.run(
        [*XENPY, "serve", "block", "--rundir", str(tmp_path)],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert f"already served by process {daemon.process.pid}" in refused.stderr
