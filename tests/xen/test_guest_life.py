# SPDX-License-Identifier: MIT
"""Guests that are saved, restored, paused and rebooted on disks of `xenpy serve block` (L2-L4)."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, DaemonProcess
from conformance.guests import FILE_SYSTEM, daemon, guest, image, inside, until_unserved
from xenpy.vm import disk

pytestmark = pytest.mark.slow

__all__ = ["daemon", "image"]

COUNTS = """
mkfs.ext4 -q -F /dev/xvda
mkdir -p /mnt
mount -t ext4 /dev/xvda /mnt
(n=0; while true; do n=$((n + 1)); echo $n > /mnt/count.new; sync
mv /mnt/count.new /mnt/count; sync; done) > /tmp/errors 2>&1 &
"""
"""A guest that writes and flushes all the time."""


def until_it_counts(name: str) -> None:
    """The guest's writes and flushes go on, and none has failed."""
    before = int(inside(name, "cat /mnt/count 2> /dev/null || echo 0"))
    deadline = time.monotonic() + PATIENCE
    while int(inside(name, "cat /mnt/count 2> /dev/null || echo 0")) < before + 3:
        assert time.monotonic() < deadline, inside(name, "cat /tmp/errors; dmesg | tail -n 20")
    assert inside(name, "cat /tmp/errors") == ""


def until_back(name: str, before: str) -> None:
    """A domain of that name is there again, another one, and up.  Its vif comes after its name."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = subprocess.run(["xl", "domid", name], capture_output=True, text=True, check=False)
        has_vif = subprocess.run(["xenvm-guest", "address", name], capture_output=True, check=False)
        if found.stdout.strip() not in ("", before) and has_vif.returncode == 0:
            break
        assert time.monotonic() < deadline, "it does not come back"
        time.sleep(0.1)
    disk.run("xenvm-guest", "wait", name)


def restore(state: Path, name: str, image: Path) -> None:
    """`xl restore`; before Xen 4.19 the disk is ours to give (`disk.create`)."""
    if disk.xen_version() >= disk.XL_TAKES_TAP:
        disk.run("xl", "restore", str(state))
    else:
        disk.run("xl", "restore", "-p", str(state))
        disk.attach(name, image, "xvda")
        disk.run("xl", "unpause", name)
    disk.run("xenvm-guest", "wait", name)


def test_a_guest_is_saved_and_restored_while_it_writes(
    daemon: DaemonProcess, image: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with guest("saved", image, "--memory", "160") as name:
        inside(name, COUNTS)
        until_it_counts(name)
        disk.run("xl", "save", "-c", name, str(state))
        # A checkpoint: the same domain goes on with the same ring.
        until_it_counts(name)
        before = disk.domid(name)
        disk.run("xl", "save", name, str(state))
        until_unserved(daemon)
        restore(state, name, image)
        assert disk.domid(name) != before
        until_it_counts(name)
        (counters,) = daemon.devices().values()
        assert (counters["errors"], counters["refused"]) == (0, 0)
    until_unserved(daemon)
    # Left in mid-write: e2fsck replays the journal, and finds nothing else.
    assert subprocess.run(["e2fsck", "-fy", image], check=False).returncode in (0, 1)
    disk.run("e2fsck", "-fn", str(image))


def test_a_guest_that_is_paused_finds_its_disk_again(daemon: DaemonProcess, image: Path) -> None:
    with guest("paused", image) as name:
        inside(name, COUNTS)
        until_it_counts(name)
        disk.run("xl", "pause", name)
        time.sleep(3)
        disk.run("xl", "unpause", name)
        until_it_counts(name)


def test_a_guest_reboots(daemon: DaemonProcess, image: Path) -> None:
    """xl makes a new domain of it; before Xen 4.19 it knows nothing of the disk."""
    with guest("again", image, "--line", "on_reboot = 'restart'") as name:
        said = inside(name, FILE_SYSTEM).split()[0]
        before = disk.domid(name)
        inside(name, "(sleep 1; reboot -f) > /dev/null 2>&1 &")
        until_back(name, before)
        if disk.xen_version() < disk.XL_TAKES_TAP:
            disk.attach(name, image, "xvda")
        there = (
            "while [ ! -b /dev/xvda ]; do sleep 0.1; done; mkdir -p /mnt; "
            "mount -t ext4 /dev/xvda /mnt; sha256sum < /mnt/file"
        )
        assert inside(name, there).split()[0] == said
        (counters,) = daemon.devices().values()
        assert (counters["errors"], counters["refused"]) == (0, 0)
