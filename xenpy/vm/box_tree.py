# SPDX-License-Identifier: MIT
"""From an unpacked Debian tree to the disk of a Vagrant box; runs as root inside a namespace.

`python3 -m xenpy.vm.box_tree RELEASE TREE DISK KEYS`, started by `xenpy.vm.box`.
The tree itself stays as it is: what the box has more lies in an overlay that ends with us.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from xenpy.vm.bootdisk import PARTITION_OFFSET, grub_config
from xenpy.vm.image import DATA
from xenpy.vm.qemu import Machine
from xenpy.vm.releases import Release, release
from xenpy.vm.tree import Tree

__all__ = ["boot_menu", "main", "mke2fs_command"]

MACHINE = Machine(
    root="/dev/vda1",
    # The CPU is Vagrant's business: a PV dom0 under SMAP dies at once in QEMU before 9.1.
    xen_arguments=("smap=0",),
    kernel_arguments=("xenvm.net=dhcp",),
)
INITRD = "/boot/initrd.img"
PRIVATE = (
    # Keys of the cache, or of the day on which Debian's package was unpacked: a box is for others.
    "etc/xenvm/host_key", "etc/xenvm/authorized_keys", "etc/ssh/ssh_host_*",
    "etc/resolv.conf",
)  # fmt: skip


def boot_menu(row: Release, kernel_version: str) -> str:
    """grub.cfg of a box of `row`."""
    return grub_config(
        xen=(f"/boot/{row.hypervisor}", MACHINE.xen_command_line()),
        kernel=(f"/boot/vmlinuz-{kernel_version}", MACHINE.kernel_command_line()),
        initrd=INITRD,
    )


def mke2fs_command(tree: Path, disk: Path, disk_size: int) -> list[str]:
    """The command that makes the partition of a disk of `disk_size` bytes, and copies the tree."""
    return [
        "mke2fs", "-q", "-F", "-t", "ext4", "-L", "xenvm", "-m", "0",
        "-E", f"offset={PARTITION_OFFSET},lazy_itable_init=1",
        "-d", os.fspath(tree), os.fspath(disk), f"{(disk_size - PARTITION_OFFSET) >> 10}k",
    ]  # fmt: skip


def furnish(tree: Tree, keys: Path) -> None:
    """Add what a box needs beyond dom0: the user, the boot menu, and a way to switch it off."""
    # Made anew: dom0's key towards its guests is not the cache's.
    (tree.root / "etc/xenvm/guest_host_key").unlink(missing_ok=True)
    tree.prepare(keys)
    for pattern in PRIVATE:
        for path in tree.root.glob(pattern):
            path.unlink()
    data = DATA / "box"
    # No password, which is not the same as a locked account: sshd refuses those.
    tree.chroot("useradd", "--create-home", "--shell=/bin/bash", "--password=*", "vagrant")
    tree.put("/home/vagrant/.ssh/authorized_keys", (data / "authorized_keys").read_bytes(), 0o600)
    (tree.root / "home/vagrant/.ssh").chmod(0o700)
    tree.chroot("chown", "--recursive", "vagrant:vagrant", "/home/vagrant/.ssh")
    tree.put("/etc/sudoers.d/vagrant", (data / "sudoers").read_bytes(), 0o440)
    tree.put("/usr/sbin/shutdown", (data / "shutdown").read_bytes(), 0o755)
    tree.put(INITRD, tree.dom0_initramfs())
    tree.put("/boot/grub/grub.cfg", boot_menu(tree.release, tree.kernel_version))


def overlay(tree: Path, scratch: Path) -> Path:
    """A writable view of `tree`, in the new directory `scratch`; what is written stays in memory.

    Unmounted by the end of our namespace.
    """
    scratch.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "xenvm", scratch], check=True)
    for name in ("upper", "work", "merged"):
        (scratch / name).mkdir()
    options = f"lowerdir={tree},upperdir={scratch}/upper,workdir={scratch}/work"
    merged = scratch / "merged"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
    return merged


def main(argv: Sequence[str]) -> None:
    """Fill the partition of the disk; the arguments are in the module's docstring."""
    name, tree_path, disk, keys = argv[0], Path(argv[1]), Path(argv[2]), Path(argv[3])
    tree = Tree(overlay(tree_path, disk.with_name("overlay")), release(name))
    furnish(tree, keys)
    subprocess.run(mke2fs_command(tree.root, disk, disk.stat().st_size), check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
