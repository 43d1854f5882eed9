# SPDX-License-Identifier: MIT
"""What a device that is served in this domain has done, by whoever serves it, as it says itself.

Linux's drivers count in sysfs, netback's by its interface; xenpy's disks, as tapdisk's, in the file
that xentop reads.  Names are blkback's (drivers/block/xen-blkback/xenbus.c), and of bytes and
packets an interface's.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from xenpy.device_list import Listed

__all__ = ["MODULES", "Counters", "counters", "daemon_of", "served_by"]

Counters = Mapping[str, int]
"""Name -> how many since it connected."""

MODULES: Final = {
    "vbd": "xen-blkback",
    "vif": "xen-netback",
    "pvcalls": "pvcalls-back",
    "vscsi": "xen-scsiback",
}
"""Kinds that a driver of Linux takes if it is loaded, as /sys/bus/xen-backend/drivers calls it, and
its module."""
BLKBACK: Final = ("oo_req", "rd_req", "wr_req", "f_req", "ds_req", "rd_sect", "wr_sect")
NETWORK: Final = {
    # From the guest's side, as netback's statistics are from the host's.
    "tx_bytes": "rx_bytes", "tx_packets": "rx_packets",
    "rx_bytes": "tx_bytes", "rx_packets": "tx_packets",
}  # fmt: skip
VBD3: Final = struct.Struct("<II11Q")
"""struct vbd3_stats of Xen's tools/libs/stat/xenstat_linux.c."""
NUMBER: Final = re.compile(r"\d{1,20}", re.ASCII)


def counters(device: Listed, own: int, root: Path = Path("/")) -> Counters:
    """Empty if nobody counts, or the backend is not in this domain.

    Args:
        own: this domain: a device of that name in another one has nothing to do with ours.
        root: where the files are.
    """
    if device.backend_domid != own:
        return {}
    node = _node(device, root)
    found = {name: _file(node / "statistics" / name) for name in BLKBACK}
    if device.kind == "vif":
        net = root / f"sys/class/net/vif{device.domid}.{device.devid}/statistics"
        found = {name: _file(net / file) for name, file in NETWORK.items()}
    known = {name: count for name, count in found.items() if count is not None}
    return known or _vbd3(device, root)


def served_by(device: Listed, own: int, rundir: str = "/run/xenpy", root: Path = Path("/")) -> str:
    """Who serves it: a module of Linux's, "xenpy PID", or "" if that is not to be seen.

    Args:
        own: this domain: of others nothing is known.
        rundir: where daemons of xenpy have their lock files.
    """
    if device.backend_domid != own:
        return ""
    try:
        driver = os.path.basename(os.readlink(_node(device, root) / "driver"))
    except OSError:
        driver = ""
    if driver:
        return MODULES.get(driver, driver)
    pid = daemon_of(device.kind, rundir, root)
    return f"xenpy {pid}" if pid else ""


def daemon_of(kind: str, rundir: str = "/run/xenpy", root: Path = Path("/")) -> int | None:
    """The process of xenpy's that serves a kind, by its lock file (`service.claim_kind`); None if
    none says so that lives."""
    pid = _file(root / rundir.lstrip("/") / f"backend-{kind}.lock")
    return pid if pid and (root / f"proc/{pid}").exists() else None


def _node(device: Listed, root: Path) -> Path:
    return root / f"sys/bus/xen-backend/devices/{device.kind}-{device.domid}-{device.devid}"


def _file(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            text = file.read(40).decode("ascii", "replace").strip()
    except OSError:
        return None
    return int(text) if NUMBER.fullmatch(text) else None


def _vbd3(device: Listed, root: Path) -> Counters:
    pid = device.keys.get("kthread-pid", "")
    if not NUMBER.fullmatch(pid):
        return {}
    path = root / f"dev/shm/td3-{pid}/vbd-{device.domid}-{device.devid}"
    try:
        with path.open("rb") as file:
            version, _, busy, *rest = VBD3.unpack(file.read(VBD3.size))
    except (OSError, struct.error):
        return {}
    if version != 1:
        return {}
    _, reads, read_sectors, _, _, writes, write_sectors, _, errors, _ = rest
    return {
        "oo_req": busy, "rd_req": reads, "wr_req": writes, "rd_sect": read_sectors,
        "wr_sect": write_sectors, "errors": errors,
    }  # fmt: skip
