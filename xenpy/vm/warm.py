# SPDX-License-Identifier: MIT
"""Warm snapshots: a booted Xen, frozen, from which each run gets a copy of its own.

A snapshot is a qcow2 file over the image's disk plus the machine's state (QEMU's
`migrate` to a file).  Both are only ever read: a run lays its own overlay on the disk and
loads the state with `-incoming`, so runs see nothing of each other and any number of
them may start from one snapshot at the same time.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xenpy.vm import build, progress
from xenpy.vm.cache import Cache, digest, remove_tree
from xenpy.vm.checkout import Checkout
from xenpy.vm.errors import BootTimeoutError
from xenpy.vm.image import Image
from xenpy.vm.machine import Vm, make_overlay
from xenpy.vm.qemu import QEMU, Machine, warm_key
from xenpy.vm.session import Session
from xenpy.vm.ssh import Keys, Link

__all__ = ["Warm", "ensure", "qemu_version"]

# Run once before the freeze, so that their pages are in dom0's memory afterwards.
WARM_UP = (
    "xl info > /dev/null && xl list > /dev/null && xenstore-ls / > /dev/null && "
    "python3 -c 'import asyncio, cffi, json, pyxs, subprocess' && tar --version > /dev/null && "
    "ssh -V && cat /root/guests/vmlinux /root/guests/initramfs > /dev/null && sync"
)


RECIPE = "with xenpy in it"
"""Another for snapshots that are made in another way."""

KEEP = 30 * 24 * 3600.0
"""Seconds without use until a snapshot goes."""


@dataclass(frozen=True)
class Warm:
    """A finished snapshot."""

    directory: Path

    @property
    def disk(self) -> Path:
        """The overlay on the image's disk."""
        return self.directory / "disk.qcow2"

    @property
    def state(self) -> Path:
        """Memory and devices."""
        return self.directory / "state"

    @property
    def pushed(self) -> Path:
        """What of xenpy was in dom0: see `pushed.Pushed`."""
        return self.directory / "pushed.json"


def qemu_version() -> str:
    """QEMU's version, as it says it."""
    done = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


def ensure(cache: Cache, image: Image, machine: Machine) -> Warm:
    """The snapshot of `machine` running `image`, made by a cold boot if there is none."""
    key = digest(warm_key(machine, image.identity, qemu_version()), RECIPE)
    mode = "icount" if machine.icount else machine.accelerator
    kind = f"{mode}-{machine.store}-{machine.init}-{machine.cpus}"
    final = cache.root / "warm" / f"{image.release.name}-{kind}-{key}"
    warm = Warm(final)
    if _used(final):
        return warm
    with cache.locked(f"warm-{final.name}", f"making the snapshot {final.name}"):
        if _used(final):
            return warm
        cache.need_space(1500, "a warm snapshot")
        what = f"booting Xen {image.release.xen} once, for the warm snapshot ({mode})"
        with progress.step(what), cache.building(final) as work:
            _make_or_retry(cache, image, machine, Warm(work))
        _drop_old(final)
    return warm


def _used(final: Path) -> bool:
    """Whether there is such a snapshot; if so, note that it is used."""
    try:
        os.utime(final)
    except FileNotFoundError:
        return False
    return True


def _make_or_retry(cache: Cache, image: Image, machine: Machine, warm: Warm) -> None:
    """Boot once more if dom0 hangs on its way up: an emulated machine does that at times, with
    its CPUs busy and nothing on its console."""
    try:
        _make(cache, image, machine, warm)
    except BootTimeoutError as error:
        progress.note(f"{error}: booting once more")
        for path in warm.directory.iterdir():
            path.unlink()
        _make(cache, image, machine, warm)


def _make(cache: Cache, image: Image, machine: Machine, warm: Warm) -> None:
    make_overlay(image.root, "raw", warm.disk)
    with Vm(image, machine, warm.directory) as vm:
        vm.start(warm.disk)
        link = Link(Keys.ensure(cache), vm.port, warm.directory)
        with Session(link, vm.check, vm) as session:
            session.output(WARM_UP)
            checkout = Checkout.scan()
            session.push(checkout, build.ensure(cache, image, checkout)).save(warm.pushed)
            session.output("sync")
        with vm.qmp() as qmp:
            qmp.save_state(warm.state)
            qmp.execute("quit")
        vm.wait()
    for path in (warm.disk, warm.state):
        path.chmod(0o444)


def _drop_old(final: Path) -> None:
    """Remove snapshots of this kind of machine that an older image or QEMU left behind, and of
    any kind what nobody has used for long.

    The one of them that was used last stays: a run may be about to start from it.
    """
    kind = final.name.rpartition("-")[0]
    others = sorted(
        (entry for entry in final.parent.glob(f"{kind}-*") if entry != final),
        key=lambda entry: entry.stat().st_mtime,
    )
    for entry in others[:-1]:
        remove_tree(entry)
    for entry in final.parent.iterdir():
        # Another process may have removed it.
        with suppress(FileNotFoundError):
            if time.time() - entry.stat().st_mtime > KEEP:
                remove_tree(entry)
