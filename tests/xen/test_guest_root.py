# SPDX-License-Identifier: MIT
"""A guest whose root file system is in a qcow2 image behind qemu-nbd: stock, but for our daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, DaemonProcess
from conformance.nbd_server import QemuNbd
from xenpy.vm import disk

pytestmark = pytest.mark.slow

PROGRAMS = ("bash", "cat", "dd", "mkdir", "mount", "sha256sum", "sync")
"""Debian's own; busybox only turns the machine off."""

INIT = """#!/bin/bash
mount -o remount,rw /
while read -r device where type rest; do
    [ "$where" = / ] && echo "ROOT $device $type"
done < /proc/mounts > /said
dd if=/dev/urandom of=/written bs=1M count=4 conv=fsync 2> /dev/null
echo "SUM $(sha256sum < /written)" >> /said
sync
mount -o remount,ro /
exec busybox poweroff -f
"""


def root_file_system(work: Path) -> Path:
    """A small Debian: programs of dom0's with their libraries, and `INIT`."""
    tree = work / "tree"
    for name in ("bin", "sbin", "dev", "proc", "sys", "lib", "lib64", "tmp", "run"):
        (tree / name).mkdir(parents=True)
    libraries: set[str] = set()
    for program in PROGRAMS:
        path = shutil.which(program)
        assert path is not None, program
        shutil.copy(path, tree / "bin" / program)
        listed = disk.run("ldd", path)
        libraries |= set(re.findall(r"(/\S+\.so\S*)", listed))
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    for library in libraries:
        place = tree / library.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)
    init = tree / "sbin/init"
    init.write_text(INIT)
    init.chmod(0o755)
    raw, image = work / "raw", work / "root.qcow2"
    disk.run("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(raw), "64M")
    disk.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    raw.unlink()
    return image


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_guest_boots_its_root_from_a_qcow2_image_over_nbd(tmp_path: Path, kind: str) -> None:
    image, name = root_file_system(tmp_path), f"root{kind}"
    words = ("--type", kind, "--no-wait", "--no-network", "--kernel-arguments", "root=/dev/xvda")
    with (
        QemuNbd(image, tmp_path / "nbd.sock", "--format=qcow2") as server,
        DaemonProcess(tmp_path),
    ):
        disk.create(name, Path(server.target), *words)
        deadline = time.monotonic() + 2 * PATIENCE
        while subprocess.run(["xl", "domid", name], capture_output=True, check=False).stdout:
            assert time.monotonic() < deadline, disk.run("xenvm-guest", "console", name)
            time.sleep(0.2)
        console = disk.run("xenvm-guest", "console", name)
    raw = tmp_path / "raw"
    disk.run("qemu-img", "convert", "-O", "raw", str(image), str(raw))
    disk.run("e2fsck", "-fn", str(raw))
    # Not what it says on its console: xenconsoled loses the last words of a domain that is gone.
    said = disk.run("debugfs", "-R", "cat /said", str(raw))
    assert "ROOT /dev/xvda ext4" in said, (said, console)
    (total,) = re.findall(r"SUM (\w{64})", said)
    disk.run("debugfs", "-R", f"dump /written {tmp_path}/written", str(raw))
    assert disk.run("sha256sum", str(tmp_path / "written")).split()[0] == total
