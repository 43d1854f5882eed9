# SPDX-License-Identifier: MIT
"""Small initramfs archives, and the parts of a kernel package that go into them.

The "newc" cpio format is documented in the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst, the fields of a bzImage in
Documentation/arch/x86/boot.rst, and modules.dep in modules.dep(5).
"""

from __future__ import annotations

import gzip
import lzma
import stat
import struct
import subprocess
from pathlib import Path

from xenpy.vm.errors import VmError

__all__ = ["Archive", "extract_vmlinux", "module_order", "read_module"]


class Archive:
    """A cpio archive under construction."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory, and the ones above it."""
        path = path.strip("/")
        if "/" in path:
            self._parents(path)
        self._entries.setdefault(path, (stat.S_IFDIR | mode, b"", (0, 0)))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._parents(path)
        self._entries[path.strip("/")] = (stat.S_IFREG | mode, data, (0, 0))

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._parents(path)
        self._entries[path.strip("/")] = (stat.S_IFLNK | 0o777, target.encode(), (0, 0))

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device: the kernel opens /dev/console before /init runs."""
        self._parents(path)
        self._entries[path.strip("/")] = (stat.S_IFCHR | mode, b"", (major, minor))

    def pack(self) -> bytes:
        """The archive, gzipped (fast: it is read once and made often)."""
        out = bytearray()
        for number, (path, (mode, data, device)) in enumerate(self._entries.items(), 1):
            out += _entry(path, number, mode, data, device)
        out += _entry("TRAILER!!!", 0, 0, b"", (0, 0))
        return gzip.compress(bytes(out), compresslevel=1, mtime=0)

    def _parents(self, path: str) -> None:
        parent = path.strip("/").rpartition("/")[0]
        if parent:
            self.directory(parent)


def _entry(path: str, inode: int, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
    name = path.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def module_order(modules: Path, wanted: list[str]) -> list[Path]:
    """The files of the modules `wanted` and of all they need, in the order to insert them.

    `modules` is a /lib/modules/VERSION directory.  Names that are built into the kernel
    give nothing; a name that is neither is an error.
    """
    needs: dict[str, tuple[Path, list[str]]] = {}
    by_path: dict[str, str] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        name = _module_name(path)
        by_path[path] = name
        needs[name] = (modules / path, rest.split())
    builtin = {
        _module_name(line) for line in (modules / "modules.builtin").read_text().splitlines()
    }
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in order:
            return
        path, dependencies = needs[name]
        for dependency in reversed(dependencies):
            add(by_path[dependency])
        order[name] = path

    for name in (wish.replace("-", "_") for wish in wanted):
        if name in needs:
            add(name)
        elif name not in builtin:
            raise VmError(f"the kernel {modules.name} has no module {name!r}")
    return list(order.values())


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """The module, uncompressed: busybox's insmod knows no xz."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def extract_vmlinux(bzimage: Path) -> bytes:
    """The ELF kernel inside a bzImage.

    libxl takes a minute to decompress a bzImage under emulation, an ELF loads at once.
    """
    image = bzimage.read_bytes()
    if image[0x202:0x206] != b"HdrS":
        raise VmError(f"{bzimage} is not a bzImage")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        kernel = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):
        # The last four bytes are the uncompressed size, added by the kernel's build.
        kernel = subprocess.run(
            ["zstd", "-dcq"], input=payload[:-4], stdout=subprocess.PIPE, check=True
        ).stdout
    elif payload.startswith(b"\x1f\x8b"):
        kernel = gzip.decompress(payload[:-4])
    else:
        raise VmError(f"{bzimage}: unknown compression {payload[:6].hex()}")
    if not kernel.startswith(b"\x7fELF"):
        raise VmError(f"{bzimage}: the payload is not an ELF file")
    return kernel
