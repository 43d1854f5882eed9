# SPDX-License-Identifier: MIT
"""`xenvm box`: a Vagrant box of a Xen, for the provider libvirt.

A box is a tar.gz of three files: metadata.json, a Vagrantfile with the provider's defaults,
and box.img, a qcow2 disk that boots by itself.  It is made from the same Debian tree and by
the same code as the image of the other verbs; `xenpy.vm.box_tree` says what it has more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from xenpy.vm import bootdisk, host, image, namespace, progress
from xenpy.vm.cache import Cache
from xenpy.vm.context import Context
from xenpy.vm.errors import VmError
from xenpy.vm.image import DATA
from xenpy.vm.releases import Release
from xenpy.vm.ssh import Keys

__all__ = ["BOX_PACKAGES", "VAGRANT_PACKAGES", "box", "convert_command", "metadata", "pack"]

BOX_PACKAGES = ("grub-common", "grub-pc-bin")
VAGRANT_PACKAGES = (
    "vagrant", "vagrant-libvirt", "libvirt-daemon-system", "libvirt-clients", "dnsmasq-base",
    "iptables", "qemu-system-x86", "qemu-utils",
)  # fmt: skip
"""What runs a box; `xenvm box` itself does without, since that may be another host."""

DISK_GIB = 8
FILES = ("metadata.json", "Vagrantfile", "box.img")


def box(context: Context, arguments: argparse.Namespace) -> int:
    """Make a Vagrant box of the machine: Xen, its dom0, and what its guests boot from.

    For `vagrant up --provider=libvirt`; vagrant/Vagrantfile uses it under the name `xenvm`.
    The box has the user `vagrant`, who may use sudo, and an address from DHCP.

    examples:
      xenvm box
      xenvm box --release bookworm --output old.box
      xenvm box && vagrant box add --name xenvm xenvm-trixie.box
    """
    release = context.release
    output: Path = arguments.output or Path(f"xenvm-{release.name}.box")
    if not output.absolute().parent.is_dir():
        raise VmError(f"there is no directory {output.absolute().parent}")
    host.ensure_packages([*host.VM_PACKAGES, *BOX_PACKAGES])
    make(context.cache, release, output)
    print(f"{output}: Xen {release.xen} ({release.name}), {output.stat().st_size >> 20} MiB")
    return 0


def make(cache: Cache, release: Release, output: Path) -> None:
    """Make the box `output`; it appears when it is complete."""
    cache.need_space(6000, f"the box of {release.name}")
    with tempfile.TemporaryDirectory(prefix="box.", dir=cache.directory("tmp")) as name:
        work = Path(name)
        disk = work / "disk"
        _make_disk(cache, release, disk)
        with progress.step("packing the box"):
            subprocess.run(convert_command(disk, work / "box.img"), check=True)
            disk.unlink()
            (work / "metadata.json").write_text(metadata())
            (work / "Vagrantfile").write_bytes((DATA / "box/Vagrantfile").read_bytes())
            partial = output.with_name(f".{output.name}.part")
            try:
                pack(work, partial)
                partial.rename(output)
            finally:
                partial.unlink(missing_ok=True)


def _make_disk(cache: Cache, release: Release, disk: Path) -> None:
    log = cache.directory("log") / f"box-{release.name}.log"
    log.unlink(missing_ok=True)
    keys = disk.with_name("keys")
    keys.mkdir()
    Keys.make(keys)
    core = disk.with_name("core.img")
    namespace.run(
        bootdisk.mkimage_command(core), what="making GRUB's core image", log=log, private=False
    )
    boot = (bootdisk.GRUB_DIRECTORY / "boot.img").read_bytes()
    size = DISK_GIB << 30
    with disk.open("wb") as handle:
        handle.write(bootdisk.boot_sectors(boot, core.read_bytes(), size))
        handle.truncate(size)
    command = [sys.executable, "-m", "xenpy.vm.box_tree", release.name]
    with (
        image.locked_tree(cache, release) as tree,
        progress.step(f"making the disk of a box of {release.name}"),
    ):
        namespace.run(
            [*command, tree, disk, keys],
            what="making the disk of the box",
            log=log,
            env={
                "PYTHONPATH": os.fspath(Path(__file__).resolve().parents[2]),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )


def metadata() -> str:
    """metadata.json, as vagrant-libvirt wants it."""
    values = {"provider": "libvirt", "format": "qcow2", "virtual_size": DISK_GIB}
    return json.dumps(values, indent=2) + "\n"


def convert_command(disk: Path, target: Path) -> list[str]:
    """The command that makes the raw `disk` a qcow2.  Not compressed: the box is."""
    return ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", os.fspath(disk), os.fspath(target)]


def pack(directory: Path, target: Path) -> None:
    """Pack the three files of a box in `directory`."""
    with tarfile.open(target, "w:gz", compresslevel=1, format=tarfile.USTAR_FORMAT) as tar:
        for name in FILES:
            info = tar.gettarinfo(directory / name, name)
            info.uid = info.gid = 0
            info.uname = info.gname = "root"
            info.mode = 0o644
            with (directory / name).open("rb") as content:
                tar.addfile(info, content)
