# SPDX-License-Identifier: MIT
"""The frontend in a guest: real grants from one domain to another, XenStore by /dev/xen/xenbus.

A guest of ours has no Python.  It finds one on its first disk, which is dom0's own root file
system, read-only.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.daemon_process import DaemonProcess
from fences import ROOT
from xenpy.vm import disk

pytestmark = pytest.mark.slow

GUEST = "front"
SIZE = 8 << 20
PREPARE = f"""
while [ ! -b /dev/xvda ] || [ ! -b /dev/xvdb ]; do sleep 0.1; done
mount -t ext4 -o ro,noload /dev/xvda /mnt
for directory in dev proc sys; do mount --bind /$directory /mnt/$directory; done
mount -t tmpfs run /mnt/run
mount -t tmpfs tmp /mnt/tmp
chroot /mnt modprobe -a xen-gntalloc xen-evtchn
test -e /mnt{ROOT}/xenpy
"""
XENPY = f"cd {ROOT} && PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1 python3 -m xenpy.cli block"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture
def guest(image: Path, tmp_path: Path) -> Iterator[str]:
    """A guest with dom0's root on xvda and the image on xvdb."""
    # What is in the journal alone is not there for a mount that may not replay it.
    disk.run("sh", "-c", "fsfreeze -f / && fsfreeze -u /")
    root = disk.run("findmnt", "--noheadings", "--output", "SOURCE", "/").strip()
    with DaemonProcess(tmp_path, "force=1"):
        disk.run("xenvm-guest", "create", GUEST, "--memory", "512")
        try:
            disk.attach(GUEST, Path(root), "xvda", "r")
            disk.attach(GUEST, image, "xvdb")
            inside(PREPARE)
            yield GUEST
        finally:
            disk.run("xl", "destroy", GUEST)


def inside(script: str) -> str:
    return disk.run("xenvm-guest", "exec", GUEST, "--", f"set -e\n{script}")


def xenpy(words: str) -> str:
    return inside(f"chroot /mnt sh -c '{XENPY} {words}'")


def test_a_guest_reads_and_writes_a_disk_without_its_kernel(guest: str, image: Path) -> None:
    with pytest.raises(disk.CommandError, match="the kernel drives it"):
        xenpy("info xvdb")
    inside("echo vbd-51728 > /sys/bus/xen/drivers/vbd/unbind")
    found = json.loads(xenpy("info xvdb --json"))
    assert (found["size"], found["readonly"]) == (SIZE, False)
    domid = disk.domid(guest)
    assert found["frontend"] == f"/local/domain/{domid}/device/vbd/51728"
    content = image.read_bytes()
    said = json.loads(xenpy("read xvdb --json"))
    assert said == {"read": SIZE, "sha256": hashlib.sha256(content).hexdigest()}
    inside("dd if=/dev/urandom of=/mnt/tmp/part bs=1M count=2 2>/dev/null")
    said = json.loads(xenpy("write xvdb --offset 1M --json < /tmp/part"))
    assert said == {"written": 2 << 20, "flushed": True}
    part = inside("sha256sum < /mnt/tmp/part").split()[0]
    assert hashlib.sha256(image.read_bytes()[1 << 20 : 3 << 20]).hexdigest() == part
    # xl, which knows nothing of it, takes it away.
    disk.detach(guest, "xvdb")
    assert subprocess.run(["xl", "domid", guest], check=False).returncode == 0
