# SPDX-License-Identifier: MIT
"""The demo, in dom0: a stock guest on a disk that Python serves.  `xenvm demo` runs it.

Every line of the table was observed: nothing is printed because it ought to be so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from xenpy.vm import disk
from xenpy.vm.serve import Daemon

__all__ = ["Report", "main"]

GUEST = "demo"
WORK = Path("/root/demo")
IMAGE_MIB = 64
FILES = ["one", "two", "three", "four"]
FILE_MIB = 4
PATIENCE = 60.0

# `nobarrier`: Linux counts a write that carries a flush once in /sys/block/xvda/stat, and the
# flush it becomes on the ring nowhere.  So the guest flushes the disk by itself, at the end
# of everything: that is one write of no sectors for the guest and one flush for us.
GUEST_SCRIPT = f"""
set -e
mkfs.ext4 -q -F /dev/xvda
mkdir -p /mnt
mount -t ext4 -o nobarrier /dev/xvda /mnt
cd /mnt
for name in {" ".join(FILES)}; do
    dd if=/dev/urandom of=$name bs=1M count={FILE_MIB} conv=fsync 2>/dev/null
done
cat {" ".join(FILES)} | sha256sum
cd /
umount /mnt
dd if=/dev/null of=/dev/xvda conv=notrunc,fsync 2>/dev/null
uname -r
basename $(readlink /sys/block/xvda/device/driver)
cat /sys/block/xvda/stat
"""


class DemoError(Exception):
    """A step of the demo did not work."""


@dataclass
class Report:
    """What was seen.

    Attributes:
        frontend: the driver that is bound to the disk in the guest's sysfs.
        guest_requests: what /sys/block/xvda/stat says: reads, writes and discards completed, the
            guest's own flushes among the writes.
        requests: what the backend took from the ring.
        fsck: e2fsck's exit status on the image afterwards.
    """

    xen_version: str = ""
    dom0_kernel: str = ""
    guest_kernel: str = ""
    frontend: str = ""
    backend: str = ""
    guest_sha256: str = ""
    host_sha256: str = ""
    guest_requests: int = -1
    requests: int = 0
    bytes_written: int = 0
    bytes_read: int = 0
    batches: int = 0
    notifications: int = 0
    fsck: int = -1
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list[str])
    ok: bool = False

    def judge(self) -> None:
        """Set `ok`, and say in `problems` what is wrong."""
        for good, text in (
            (self.frontend == "vbd", f"the guest's disk is bound to {self.frontend!r}"),
            (len(self.guest_sha256) == 64, "the guest gave no sha256"),
            (self.guest_sha256 == self.host_sha256, "guest and image differ"),
            (self.requests > 0, "no request was served"),
            (
                self.requests == self.guest_requests,
                f"{self.requests} requests served, the guest counts {self.guest_requests}",
            ),
            (self.bytes_written >= len(FILES) * FILE_MIB << 20, "too little was written"),
            (self.fsck == 0, f"e2fsck ended with status {self.fsck}"),
        ):
            if not good:
                self.problems.append(text)
        self.ok = not self.problems

    def table(self) -> str:
        """For people."""
        rows = [
            ("hypervisor", f"Xen {self.xen_version}, dom0 Linux {self.dom0_kernel}"),
            ("guest", f"Linux {self.guest_kernel}, disk bound to {self.frontend!r} (xen-blkfront)"),
            ("backend", self.backend),
            (
                "requests",
                f"{self.requests} served, {self.guest_requests} counted by the guest",
            ),
            ("bytes", f"{self.bytes_written:,} written, {self.bytes_read:,} read"),
            ("ring batches", f"{self.batches}, {self.notifications} notifications"),
            ("sha256 (guest)", self.guest_sha256),
            ("sha256 (image)", self.host_sha256),
            ("e2fsck -fn", "clean" if self.fsck == 0 else f"status {self.fsck}"),
            ("seconds", f"{self.seconds:.1f}"),
            ("verdict", "ok" if self.ok else "; ".join(self.problems)),
        ]
        return "\n".join(f"{name:15} {value}" for name, value in rows)


def say(text: str) -> None:
    """One step, for whoever watches."""
    print(f"demo: {text}", flush=True)


@contextmanager
def daemon() -> Generator[Daemon]:
    """`xenpy serve block`, until the end of the block; what it said, if that fails."""
    process = Daemon(WORK, "-v", patience=PATIENCE)
    try:
        with process:
            yield process
    except BaseException:
        print(process.log.read_text()[-3000:], file=sys.stderr)
        raise


def figures_of(process: Daemon) -> Mapping[str, int]:
    """The counters of the one disk that the daemon serves."""
    devices = process.devices()
    if len(devices) != 1:
        raise DemoError(f"the daemon serves {sorted(devices)}")
    return next(iter(devices.values()))


def others_at_work() -> list[str]:
    """Backends that are not ours, if any is loaded or runs."""
    found: list[str] = []
    if Path("/sys/module/xen_blkback").exists():
        found.append("xen_blkback is loaded")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text().strip()
        except OSError:
            continue
        if name.startswith("qemu"):
            found.append(f"{name} runs")
    return found


def demonstrate(report: Report) -> None:
    """Do it all; fills in `report`."""
    parts = (Path("/sys/hypervisor/version") / part for part in ("major", "minor", "extra"))
    major, minor, extra = (part.read_text().strip() for part in parts)
    report.xen_version = f"{major}.{minor}{extra}"
    report.dom0_kernel = platform.release()
    WORK.mkdir(exist_ok=True)
    image = WORK / "disk.img"
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB << 20)
    say(f"made {image}, {IMAGE_MIB} MiB; starting xenpy serve block")
    with daemon() as process:
        if disk.xen_version() >= disk.XL_TAKES_TAP:
            say(f"xl create with disk = [{disk.line(image)!r}]")
        else:
            say("xl create -p, xenpy attach, xl unpause (this xl refuses backendtype=tap)")
        disk.create(GUEST, image)
        say("in the guest: mkfs.ext4, mount, 16 MiB of random files, fsync, sha256, unmount")
        words = disk.run("xenvm-guest", "exec", GUEST, "--", GUEST_SCRIPT).split()
        report.guest_sha256, _, report.guest_kernel, report.frontend = words[:4]
        stat = [int(word) for word in words[4:]]
        report.guest_requests = stat[0] + stat[4] + stat[11]
        figures = figures_of(process)
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        report.backend = f"{b' '.join(command).decode()} (pid {process.pid})"
        report.requests = figures["requests"]
        report.batches = figures["batches"]
        report.notifications = figures["notifications"]
        report.bytes_written = figures["wr_sect"] * 512
        report.bytes_read = figures["rd_sect"] * 512
        report.problems += others_at_work()
        say("detaching the disk")
        disk.detach(GUEST)
        disk.run("xenvm-guest", "destroy", GUEST)
    say("in dom0: e2fsck -fn, and the files out of the image")
    report.fsck = subprocess.run(
        ["e2fsck", "-fn", image], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, check=False,
    ).returncode  # fmt: skip
    content = hashlib.sha256()
    for name in FILES:
        content.update(
            subprocess.run(
                ["debugfs", "-R", f"cat /{name}", image], capture_output=True, check=True
            ).stdout
        )
    report.host_sha256 = content.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.  Returns 0 only if everything held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report to FILE")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    report = Report()
    try:
        demonstrate(report)
    except (DemoError, disk.CommandError, subprocess.SubprocessError, OSError, ValueError) as error:
        report.problems.append(str(error))
    report.seconds = round(time.monotonic() - began, 1)
    report.judge()
    print(report.table(), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(report), indent=2) + "\n")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
