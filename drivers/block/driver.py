# SPDX-License-Identifier: MIT
"""The block driver as the command line sees it: its name, options and attach nodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from xenpy.attach import DevicePlan
from xenpy.driver import Driver
from xenpy.drivers.block.back import BlockBackend
from xenpy.drivers.block.filters.chain import parse_filters
from xenpy.drivers.block.image import SCHEMES, parse_target
from xenpy.drivers.block.sector_unit import parse_sector_unit
from xenpy.drivers.block.settings import OPTIONS, Settings
from xenpy.drivers.block.trace_text import decode, peek
from xenpy.drivers.block.vdev import parse_vdev

__all__ = ["DRIVER"]

FRONTEND_KIND: Final = "vbd"
KIND: Final = "vbd3"
"""libxl's directory for `backendtype=tap`, since Xen 4.19 (6d7d8d2b3e); no kernel driver
claims it."""

WORDS: Final = {"vdev", "target", "mode", "device-type", "discard-enable", "filter", "sector-unit"}


def plan(words: Mapping[str, str], kind: str) -> DevicePlan:
    """The nodes of a disk, named as libxl names them (libxl_disk.c).

    Raises:
        ValueError: a word is missing, unknown or makes no sense.
    """
    unknown = sorted(set(words) - WORDS)
    if unknown:
        raise ValueError(f"block has no {unknown[0]!r}; it takes {', '.join(sorted(WORDS))}")
    vdev = words.get("vdev")
    if vdev is None:
        raise ValueError("which device? give vdev=xvda")
    devid = parse_vdev(vdev)
    mode = words.get("mode", "w")
    device_type = words.get("device-type", "disk")
    if mode not in ("r", "w"):
        raise ValueError(f"mode is {mode!r}; give r or w")
    if device_type not in ("disk", "cdrom"):
        raise ValueError(f"device-type is {device_type!r}; give disk or cdrom")
    discard = words.get("discard-enable", "1" if mode == "w" else "0")
    if discard not in ("0", "1"):
        raise ValueError(f"discard-enable is {discard!r}; give 0 or 1")
    backend: dict[str, str | int] = {
        "dev": vdev,
        "mode": mode,
        "device-type": device_type,
        "type": "tap",
        "removable": 1 if device_type == "cdrom" else 0,
        "discard-enable": int(discard),
        "params": _params(words.get("target", "")),
    }
    if "filter" in words:
        parse_filters(words["filter"])
        backend["filter"] = words["filter"]
    if "sector-unit" in words:
        parse_sector_unit(words["sector-unit"])
        backend["sector-unit"] = words["sector-unit"]
    return DevicePlan(
        frontend_kind=FRONTEND_KIND,
        backend_kind=kind,
        devid=devid,
        backend_keys=backend,
        frontend_keys={"virtual-device": int(devid), "device-type": device_type},
    )


def _params(target: str) -> str:
    """As libxl writes them for `backendtype=tap`: `aio:` and the target, whatever it is."""
    if not target:
        return ""
    if target.partition(":")[0] in SCHEMES:
        return f"aio:{parse_target(target)}"
    return f"aio:{Path(target).absolute()}"


DRIVER: Final = Driver(
    name="block",
    kind=KIND,
    summary="disks: raw files, block devices, memory, NBD and stores in Python (blkif)",
    backend=BlockBackend,
    options=OPTIONS,
    plan=plan,
    check_options=Settings.parse,
    decode=decode,
    kinds=("vbd", "vbd3", "qdisk"),
    peek=peek,
)
