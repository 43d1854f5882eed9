# SPDX-License-Identifier: MIT
"""Names of virtual disks and their numbers, as docs/man/xen-vbd-interface.7 defines them.

Pure; imports nothing but types.
"""

from __future__ import annotations

import re
from typing import Final

from xenpy.types import DevId

__all__ = ["parse_vdev"]

XVD_MAJOR: Final = 202
SD_MAJOR: Final = 8
HD_MAJORS: Final = {"a": (3, 0), "b": (3, 64), "c": (22, 0), "d": (22, 64)}
EXTENDED: Final = 1 << 28
XVD_DISKS: Final = 1 << 20

_NAME: Final = re.compile(r"(?P<kind>xvd|sd|hd)(?P<disk>[a-z]{1,4})(?P<partition>[0-9]{0,3})", re.A)


def parse_vdev(text: str) -> DevId:
    """The number of `xvda`, `sdb1`, `hda`, or of a plain decimal number.

    Raises:
        ValueError: not a name that a guest's frontend understands.
    """
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 1 << 29:
        return DevId(int(text))
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a vdev; give xvda, xvdb1, sda, hda or a number")
    disk = _letters(match["disk"])
    partition = int(match["partition"] or 0)
    if match["kind"] == "xvd":
        if disk < 16 and partition < 16:
            return DevId(XVD_MAJOR << 8 | disk << 4 | partition)
        if disk < XVD_DISKS and partition < 256:
            return DevId(EXTENDED | disk << 8 | partition)
    elif match["kind"] == "sd" and disk < 16 and partition < 16:
        return DevId(SD_MAJOR << 8 | disk << 4 | partition)
    elif match["kind"] == "hd" and match["disk"] in HD_MAJORS and partition < 64:
        major, first = HD_MAJORS[match["disk"]]
        return DevId(major << 8 | first | partition)
    raise ValueError(f"{text!r} is beyond what the vdev encoding can name")


def _letters(text: str) -> int:
    """a = 0, z = 25, aa = 26, as disk names count."""
    number = 0
    for letter in text:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1
