# SPDX-License-Identifier: MIT
"""Disks of dom0 that are served by nobody of ours: the kernel's blkback and QEMU's qdisk."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from xenpy.xenstore import Store, Transaction

__all__ = [
    "DEVID",
    "ELSEWHERE",
    "USUAL",
    "Nodes",
    "a_loop",
    "blkback_module",
    "run",
    "unload_blkback",
]

DEVID = 51824
"""xvdh."""
ELSEWHERE = "/local/domain/0/data/xenpytest"
"""Where no kernel driver looks for a frontend."""
USUAL = "/local/domain/0/device/vbd"
"""Where QEMU looks for one, whatever `frontend` says."""
PARAMETERS = Path("/sys/module/xen_blkback/parameters")
PATIENCE = 60.0


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def blkback_module(**parameters: int) -> Iterator[None]:
    """The kernel's backend, loaded, and its parameters set for the devices made in here."""
    run("modprobe", "xen-blkback")
    before = {name: (PARAMETERS / name).read_text() for name in parameters}
    for name, value in parameters.items():
        (PARAMETERS / name).write_text(f"{value}\n")
    try:
        yield
    finally:
        for name, text in before.items():
            (PARAMETERS / name).write_text(text)


def unload_blkback() -> None:
    """It goes once its last device has."""
    deadline = time.monotonic() + PATIENCE
    while subprocess.run(["rmmod", "xen-blkback"], capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline, "xen-blkback stays in use"
        time.sleep(0.1)


@contextmanager
def a_loop(image: Path, *options: str) -> Iterator[str]:
    """A loop device over a file."""
    device = run("losetup", "--find", "--show", *options, str(image))
    try:
        yield device
    finally:
        deadline = time.monotonic() + PATIENCE
        while run("losetup", "--associated", str(image)):
            # blkback lets go of it a moment after its nodes have gone.
            subprocess.run(["losetup", "--detach", device], capture_output=True, check=False)
            assert time.monotonic() < deadline, f"{device} stays in use"
            time.sleep(0.05)


class Nodes:
    """A device of dom0 as libxl makes it.

    Args:
        kind: below `backend/`: "vbd" is blkback's, "qdisk" QEMU's.
        place: the frontend's directory, without the number.
    """

    def __init__(self, store: Store, kind: str, place: str = ELSEWHERE) -> None:
        self._store = store
        self.front = f"{place}/{DEVID}"
        self.back = f"/local/domain/0/backend/{kind}/0/{DEVID}"

    async def make(self, keys: Mapping[str, str | int]) -> None:
        back: dict[str, str | int] = {
            "frontend": self.front, "frontend-id": 0, "online": 1, "removable": 0, "bootable": 1,
            "dev": "xvdh", "device-type": "disk", "mode": "w", **keys, "state": 1,
        }  # fmt: skip
        front: dict[str, str | int] = {
            "backend": self.back, "backend-id": 0, "virtual-device": DEVID,
            "device-type": "disk", "state": 1,
        }  # fmt: skip

        async def write(tx: Transaction) -> None:
            for path, side in ((self.front, front), (self.back, back)):
                await tx.mkdir(path)
                await tx.set_perms(path, "n0,r0")
                for key, value in side.items():
                    await tx.write(f"{path}/{key}", value)

        await self._store.transact(write)

    async def plug(self, device: str) -> None:
        """What the hotplug script of a block device says."""
        number = os.stat(device).st_rdev
        keys = {
            "physical-device": f"{os.major(number):x}:{os.minor(number):x}",
            "physical-device-path": device,
            "hotplug-status": "connected",
        }
        for key, value in keys.items():
            await self._store.write(f"{self.back}/{key}", value)

    async def get(self, key: str) -> str | None:
        return await self._store.get(f"{self.back}/{key}")

    async def remove(self) -> None:
        """What libxl does once the backend shows Closed; QEMU removes its own."""

        async def offline(tx: Transaction) -> None:
            if await tx.exists(f"{self.back}/state"):
                await tx.write(f"{self.back}/online", 0)
                if await tx.read(f"{self.back}/state") != "6":
                    await tx.write(f"{self.back}/state", 5)

        await self._store.transact(offline)
        deadline = time.monotonic() + PATIENCE
        while await self.get("state") not in (None, "6"):
            assert time.monotonic() < deadline, await self.get("state")
        for path in (self.front, self.back):
            await self._store.rm(path)
