# SPDX-License-Identifier: MIT
"""A PC disk that starts GRUB by itself: one partition, no boot-loader installer, no loop device.

    sector 0         GRUB's boot.img and the partition table; it loads sector 1
    sectors 1...     GRUB's core.img, made by grub-mkimage; it reads /boot/grub/grub.cfg
    sector 2048...   the only partition

boot.img and core.img are used as they come: the places where they look for their next part
are those that grub-setup writes when both lie at the start of the disk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from xenpy.vm.errors import VmError

__all__ = ["GRUB_DIRECTORY", "PARTITION_OFFSET", "boot_sectors", "grub_config", "mkimage_command"]

GRUB_DIRECTORY = Path("/usr/lib/grub/i386-pc")
GRUB_MODULES = (
    "biosdisk", "part_msdos", "ext2", "multiboot2", "serial", "terminal", "normal", "configfile",
    "gzio",  # the hypervisor is gzipped
)  # fmt: skip

SECTOR = 512
PARTITION_OFFSET = 1 << 20
"""Bytes before the partition: what every partitioner leaves, and far more than core.img needs."""

_BOOT_CODE = 440
_LINUX, _ACTIVE = 0x83, 0x80
_NO_CHS = b"\xfe\xff\xff"
"""A cylinder, head and sector that mean: use the sector numbers."""


def mkimage_command(output: Path) -> list[str]:
    """The command that makes core.img; it looks for its files on the first partition."""
    return [
        "grub-mkimage", "--format=i386-pc", f"--directory={GRUB_DIRECTORY}",
        "--prefix=(hd0,msdos1)/boot/grub", f"--output={os.fspath(output)}", *GRUB_MODULES,
    ]  # fmt: skip


def boot_sectors(boot: bytes, core: bytes, disk_size: int) -> bytes:
    """What stands before the partition on a disk of `disk_size` bytes.

    `boot` and `core` are the contents of boot.img and core.img.
    """
    if len(boot) != SECTOR or boot[-2:] != b"\x55\xaa":
        raise VmError("GRUB's boot.img is not a boot sector")
    if SECTOR + len(core) > PARTITION_OFFSET:
        raise VmError(f"GRUB's core.img does not fit before the partition: {len(core)} bytes")
    first = PARTITION_OFFSET // SECTOR
    entry = struct.pack(
        "<B3sB3sII", _ACTIVE, _NO_CHS, _LINUX, _NO_CHS, first, disk_size // SECTOR - first
    )
    # Between the code and the table: the disk's signature, which nobody here reads.
    table = bytes(6) + entry.ljust(64, b"\0") + b"\x55\xaa"
    return boot[:_BOOT_CODE] + table + core


def grub_config(xen: Sequence[str], kernel: Sequence[str], initrd: str) -> str:
    """grub.cfg: start Xen at once, with messages on the first serial port.

    `xen` and `kernel` are a path on the partition and an argument line, each.
    """
    return f"""\
serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
menuentry "Xen" {{
    multiboot2 {" ".join(xen)}
    module2 {" ".join(kernel)}
    module2 --nounzip {initrd}
}}
"""
