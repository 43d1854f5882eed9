# SPDX-License-Identifier: MIT
"""Which disk of this domain's an operator means, and whether the kernel has it."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Final

from xenpy.drivers.block.vdev import parse_vdev
from xenpy.errors import XenError
from xenpy.paths import frontend_path
from xenpy.types import DomId

__all__ = ["SYSFS", "check_place", "device_path", "leave_to_the_kernel"]

KIND: Final = "vbd"
SYSFS: Final = Path("/sys/bus/xen/devices")


def check_place(device: str) -> str:
    """What names a disk: `xvdb`, its number, or its frontend's directory.  Returned as it is.

    Raises:
        ValueError: it names nothing.
    """
    if not device.startswith("/"):
        parse_vdev(device)
    return device


def device_path(device: str, domid: DomId) -> str:
    """The frontend's directory of what `check_place` accepts, in domain `domid`.

    Raises:
        ValueError: it names nothing.
    """
    if device.startswith("/"):
        return device
    return frontend_path(domid, KIND, parse_vdev(device))


def leave_to_the_kernel(path: str, sysfs: Path = SYSFS) -> None:
    """Two drivers on one device would take each other's rings away.

    Raises:
        XenError: EBUSY, the kernel drives the frontend at `path`; the hint says how it lets go.
    """
    found = re.search(rf"/device/({KIND})/(\d+)$", path)
    if found is None:
        return
    name = f"{found[1]}-{found[2]}"
    driver = sysfs / name / "driver"
    if driver.exists():
        hint = f"the kernel drives it; echo {name} > {driver.resolve()}/unbind"
        raise XenError(errno.EBUSY, "open", hint, path=path)
