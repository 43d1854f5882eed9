# SPDX-License-Identifier: MIT
"""In dom0: the benchmark's guest, the rivals' disks, and the daemon that serves ours.

Our daemon refuses an image that somebody else has open, such as a loop device.  So each has
a file of its own, of one size and content, on one tmpfs.
"""

from __future__ import annotations

import os
import random
import re
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from xenpy.vm import guest, serve
from xenpy.vm.bench.table import OURS, RIVALS, SIZE_MIB, WORK
from xenpy.vm.disk import CommandError, domid, run

__all__ = ["GUEST", "Daemon", "Shell", "attach", "detach", "make_guest", "make_image"]

GUEST = "bench"
PATIENCE = 300.0
PINNED = 'cpus = "1"'
"""dom0's one vCPU has the other CPU to itself."""
TSC = 'tsc_mode = "native"'
"""As on any processor whose TSC is invariant, which QEMU's is not said to be: else Xen traps
each look at the clock, several for one operation, whoever serves the disk."""


def make_image(path: Path, mebibytes: int = SIZE_MIB) -> Path:
    """A file without holes: a hole costs its reader less than data."""
    path.parent.mkdir(exist_ok=True)
    piece = random.Random(1).randbytes(1 << 20)
    with path.open("wb") as file:
        for _ in range(mebibytes):
            file.write(piece)
    return path


HOTPLUG = Path("/etc/xen/scripts/block-bench")
HOTPLUG_TEXT = """\
#!/bin/sh
[ "$1" = add ] || exit 0
device=$(stat -L -c %t:%T "$(xenstore-read "$XENBUS_PATH/params")")
xenstore-write "$XENBUS_PATH/physical-device" "$device" "$XENBUS_PATH/hotplug-status" connected
"""
"""What /etc/xen/scripts/block does for a block device, without its search for other users: as a
whole, it does not end while libxl waits, in a machine that counts instructions."""


def _blkback(device: str) -> str:
    """The disk of a block device that the kernel serves."""
    run("modprobe", "xen-blkback")
    HOTPLUG.write_text(HOTPLUG_TEXT)
    HOTPLUG.chmod(0o755)
    return f"backendtype=phy,script={HOTPLUG.name},target={device}"


def _qdisk() -> str:
    image = make_image(Path(WORK, "qdisk.img"))
    return f"backendtype=qdisk,target={image}"


def _loop() -> str:
    image = make_image(Path(WORK, "loop.img"))
    return _blkback(run("losetup", "--find", "--show", os.fspath(image)).strip())


def _brd() -> str:
    run("modprobe", "brd", "rd_nr=1", f"rd_size={SIZE_MIB << 10}")
    make_image(Path("/dev/ram0"))
    run("sync", "/dev/ram0")
    return _blkback("/dev/ram0")


def _null_blk() -> str:
    run("modprobe", "null_blk", "nr_devices=1", "gb=1")
    return _blkback("/dev/nullb0")


MAKERS = {"qdisk": _qdisk, "loop": _loop, "brd": _brd, "null_blk": _null_blk}


def make_guest(rivals: Sequence[str]) -> dict[str, str]:
    """Create the guest, with every rival's disk that there is.

    Returns:
        Why there is none, of the rivals that are missing.

    Raises:
        CommandError: the guest does not come up, even without them.
    """
    missing: dict[str, str] = {}
    lines: dict[str, str] = {}
    for name in rivals:
        try:
            lines[name] = f"vdev={RIVALS[name][0]},format=raw,access=rw,{MAKERS[name]()}"
        except (CommandError, OSError) as error:
            missing[name] = str(error)
    words = [word for line in lines.values() for word in ("--disk", line)]
    create = ("xenvm-guest", "create", GUEST, "--fio", "--line", PINNED, "--line", TSC)
    run(*create, *words, timeout=PATIENCE)
    return missing


class Shell:
    """One shell in the guest for all that is done there: a login takes longer than a job.

    A context manager.
    """

    MARK = "xenvm-bench-done"

    def __enter__(self) -> Shell:
        words = ["ssh", "-F", guest.SSH_CONFIG, "-T", guest.wait_until_up(GUEST), "sh"]
        self._ssh = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ssh.terminate()
        self._ssh.communicate()

    def run(self, line: str) -> str:
        """Run a line of shell; what it prints on both streams.

        Raises:
            CommandError: it failed, or did not end.
        """
        assert self._ssh.stdin is not None
        assert self._ssh.stdout is not None
        self._ssh.stdin.write(f"( {line} ) 2>&1 < /dev/null; echo {self.MARK} $?\n".encode())
        self._ssh.stdin.flush()
        said = b""
        deadline = time.monotonic() + PATIENCE
        while not (end := re.search(rf"{self.MARK} (\d+)\n\Z".encode(), said)):
            if not select.select([self._ssh.stdout], [], [], deadline - time.monotonic())[0]:
                raise CommandError(f"in the guest, {line[:100]} did not end")
            if not (more := os.read(self._ssh.stdout.fileno(), 65536)):
                raise CommandError(f"the guest has gone while it ran {line[:100]}")
            said += more
        text = said[: end.start()].decode(errors="replace")
        if int(end[1]):
            raise CommandError(f"in the guest, {line[:100]} failed: {text.strip()[-500:]}")
        return text

    def wait_for(self, vdev: str) -> None:
        """Until a disk that was attached has its size."""
        size = f"/sys/block/{vdev}/size"
        self.run(
            f'n=0; until [ "$(cat {size} 2> /dev/null || echo 0)" != 0 ]; do n=$((n + 1)); '
            f"[ $n -lt 600 ] || {{ echo no {vdev}; exit 1; }}; sleep 0.1; done"
        )


class Daemon(serve.Daemon):
    """With its default options, and `python=1` for the disk in Python."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        super().__init__(Path(WORK), "python=1", environment=environment, patience=PATIENCE)

    def counters(self, vdev: str) -> Mapping[str, int]:
        """The counters of one disk."""
        return self.devices()[self.name_of(vdev)]

    def name_of(self, vdev: str) -> str:
        """What the daemon calls a disk."""
        devices = sorted(self.devices())
        # DOMID/DEVID; the DEVID of xvda is 202 << 8, and 16 more for each letter (vbd-interface).
        devid = (202 << 8) + 16 * (ord(vdev[-1]) - ord("a"))
        for name in devices:
            if name.endswith(f"/{devid}"):
                return name
        raise CommandError(f"the daemon serves {devices}, not {vdev}")


def attach(shell: Shell, vdev: str, target: str) -> None:
    """Give the guest a disk of ours.

    Raises:
        CommandError: it is not served, and why.
    """
    words = [f"vdev={vdev}", f"target={target}"]
    run("xenpy", "attach", "block", domid(GUEST), *words, "--timeout", "60")
    shell.wait_for(vdev)


def detach(vdev: str) -> None:
    """Take a disk of ours away."""
    run("xenpy", "detach", "block", domid(GUEST), f"vdev={vdev}", "--timeout", "60")


def vdev_of(name: str) -> str:
    """The vdev of one of our disks or of a rival's."""
    return (OURS.get(name) or RIVALS[name])[0]
