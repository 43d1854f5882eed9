# SPDX-License-Identifier: MIT
"""From an unpacked Debian tree to a bootable image; runs as root inside a namespace.

`python3 -m xenpy.vm.tree RELEASE TREE OUTPUT KEYS`, started by `xenpy.vm.image`.
Every step may be repeated on the same tree.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from xenpy.vm.image import DATA, DOM0_MODULES, GUEST_MODULES, ROOT_SIZE_MIB
from xenpy.vm.initramfs import Archive, extract_vmlinux, module_order, read_module
from xenpy.vm.releases import Release, release

__all__ = ["Tree", "main"]

GUEST_PROGRAMS = ["/usr/sbin/dropbear", "/usr/sbin/mke2fs", "/usr/sbin/e2fsck"]
LOADER = "/lib64/ld-linux-x86-64.so.2"


class Tree:
    """A Debian tree being made into an image."""

    def __init__(self, root: Path, row: Release) -> None:
        self.root = root
        self.release = row
        versions = sorted(path.name for path in (root / "lib/modules").iterdir())
        if len(versions) != 1:
            raise SystemExit(f"expected one kernel in {root}, found {versions}")
        self.kernel_version = versions[0]

    @property
    def modules(self) -> Path:
        """The kernel's module directory."""
        return self.root / "lib/modules" / self.kernel_version

    @property
    def vmlinuz(self) -> Path:
        """The kernel, as Debian packs it."""
        return self.root / "boot" / f"vmlinuz-{self.kernel_version}"

    def put(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Write one file."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_bytes(data.encode() if isinstance(data, str) else data)
        target.chmod(mode)

    def chroot(self, *argv: str) -> str:
        """Run a program of the tree; returns what it printed."""
        done = subprocess.run(
            ["chroot", self.root, *argv], check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    def busybox(self, path: str) -> None:
        """Make the program `path` the applet of busybox that is called so."""
        link = self.root / path.lstrip("/")
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to("/bin/busybox")

    def prepare(self, keys: Path) -> None:
        """Make the tree dom0's root file system, with what its guests boot from."""
        self.install_dom0(keys)
        (self.root / "root/guests").mkdir(parents=True, exist_ok=True)
        self.put("/root/guests/vmlinux", extract_vmlinux(self.vmlinuz))
        self.put("/root/guests/initramfs", self.guest_initramfs(keys))
        self.put("/root/guests/initramfs-fio", self.guest_initramfs(keys, ["/usr/bin/fio"]))

    def install_dom0(self, keys: Path) -> None:
        """Put in dom0's own files: init, ssh, guests' helpers."""
        data = DATA / "dom0"
        for name in ("init", "setup", "heartbeat", "udhcpc"):
            self.put(f"/usr/lib/xenvm/{name}", (data / name).read_bytes(), 0o755)
        self.busybox("/usr/lib/xenvm/bin/init")
        for name in ("poweroff", "reboot", "halt"):
            self.busybox(f"/usr/sbin/{name}")
        self.put("/etc/inittab", (data / "inittab").read_bytes())
        for name in ("xenvm.target", "xenvm-heartbeat.service"):
            self.put(f"/etc/systemd/system/{name}", (data / name).read_bytes())
        self.put("/etc/modprobe.d/xenvm.conf", (data / "modprobe.conf").read_bytes())
        self.put("/etc/xenvm/xen-version", self.release.xen + "\n")
        self.put("/etc/xenvm/sshd_config", (data / "sshd_config").read_bytes())
        self.put("/etc/xenvm/host_key", (keys / "host_key").read_bytes(), 0o600)
        self.put("/etc/xenvm/authorized_keys", (keys / "client_key.pub").read_bytes())
        self.put("/etc/xenvm/guest_key", (keys / "guest_key").read_bytes(), 0o600)
        self.put("/etc/xenvm/guest_ssh_config", (data / "guest_ssh_config").read_bytes())
        self.put("/etc/xen/scripts/vif-xenvm", (data / "vif-xenvm").read_bytes(), 0o755)
        self.put("/usr/local/bin/xenpy", (data / "xenpy").read_bytes(), 0o755)
        self.put("/usr/local/bin/xenvm-guest", (data / "xenvm-guest").read_bytes(), 0o755)
        # The checkout's own script, whatever its mode there.
        script = "/root/xenpy/xenpy/data/block-xenpy"
        text = f'#!/bin/sh\nexec $(head -n 1 {script} | cut -c 3-) {script} "$@"\n'
        self.put("/etc/xen/scripts/block-xenpy", text, 0o755)
        self.put("/etc/hostname", "xenvm\n")
        self.put("/etc/hosts", "127.0.0.1 localhost xenvm\n")
        self.put("/etc/fstab", "")
        # Root's shell finds xenpy and Debian's administration commands.
        self.put("/root/.bashrc", "export PYTHONPATH=/root/xenpy\nPS1='dom0:\\w# '\n")
        link = self.root / "root/xenpy"
        if not link.is_symlink():
            link.symlink_to("/srv/xenpy/none")
        (self.root / "srv/xenpy").mkdir(parents=True, exist_ok=True)

    def dom0_initramfs(self) -> bytes:
        """dom0's initramfs: busybox and the modules of the root disk."""
        archive = self._archive(DOM0_MODULES)
        archive.file("/init", (DATA / "dom0/initramfs-init").read_bytes(), 0o755)
        busybox = (self.root / "bin/busybox").read_bytes()
        archive.file("/bin/busybox", busybox, 0o755)
        for applet in ["sh", "mount", "insmod", "cat", "sleep", "poweroff", "switch_root", "echo"]:
            archive.symlink(f"/bin/{applet}", "busybox")
        archive.directory("/root")
        return archive.pack()

    def guest_initramfs(self, keys: Path, extra: Sequence[str] = ()) -> bytes:
        """A guest's initramfs: busybox, ssh daemon, ext4 tools, frontends."""
        data = DATA / "guest"
        archive = self._archive(GUEST_MODULES)
        archive.file("/init", (data / "init").read_bytes(), 0o755)
        archive.file("/etc/inittab", (data / "inittab").read_bytes())
        archive.file("/bin/busybox", (self.root / "bin/busybox").read_bytes(), 0o755)
        archive.file("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        archive.file("/etc/group", b"root:x:0:\n")
        archive.file("/etc/shells", b"/bin/sh\n")
        archive.directory("/root/.ssh", 0o700)
        archive.file("/root/.ssh/authorized_keys", (keys / "guest_key.pub").read_bytes(), 0o600)
        for path in ("/sbin", "/usr/bin", "/usr/sbin", "/mnt", "/var/log"):
            archive.directory(path)
        libraries: set[str] = set()
        for program in (*GUEST_PROGRAMS, *extra):
            archive.file(program, (self.root / program.lstrip("/")).read_bytes(), 0o755)
            libraries |= self.libraries(program)
        for library in sorted(libraries):
            source = (self.root / library.lstrip("/")).resolve()
            archive.file(library, source.read_bytes(), 0o755)
        for kind in ("ext2", "ext4"):
            archive.symlink(f"/usr/sbin/mkfs.{kind}", "mke2fs")
        archive.file("/etc/mke2fs.conf", (self.root / "etc/mke2fs.conf").read_bytes())
        archive.file("/etc/dropbear/host_key", self._guest_host_key(), 0o600)
        return archive.pack()

    def libraries(self, program: str) -> set[str]:
        """The shared libraries of a program of the tree, and the loader."""
        listing = self.chroot(LOADER, "--list", program)
        found = {LOADER}
        for line in listing.splitlines():
            _, arrow, rest = line.partition(" => ")
            if arrow:
                found.add(rest.partition(" (")[0].strip())
        return found

    def _guest_host_key(self) -> bytes:
        """One host key for all guests of this image, known to dom0."""
        path = "/etc/xenvm/guest_host_key"
        if not (self.root / path.lstrip("/")).exists():
            self.chroot("dropbearkey", "-t", "ed25519", "-f", path)
        listing = self.chroot("dropbearkey", "-y", "-f", path)
        public = next(line for line in listing.splitlines() if line.startswith("ssh-ed25519"))
        self.put("/etc/xenvm/guest_known_hosts", f"guest {public}\n")
        return (self.root / path.lstrip("/")).read_bytes()

    def _archive(self, wanted: list[str]) -> Archive:
        archive = Archive()
        for path in ("/dev", "/proc", "/sys", "/bin", "/modules", "/tmp", "/run"):
            archive.directory(path)
        archive.device("/dev/console", 5, 1)
        names: list[str] = []
        for module in module_order(self.modules, wanted):
            name = module.name.partition(".ko")[0] + ".ko"
            archive.file(f"/modules/{name}", read_module(module))
            names.append(name)
        archive.file("/modules/order", "".join(f"{name}\n" for name in names).encode())
        return archive


def main(argv: Sequence[str]) -> None:
    """Make the image; the arguments are in the module's docstring."""
    name, tree_path, output, keys = argv[0], Path(argv[1]), Path(argv[2]), Path(argv[3])
    tree = Tree(tree_path, release(name))
    tree.prepare(keys)

    hypervisor = tree.root / "boot" / tree.release.hypervisor
    (output / "xen").write_bytes(gzip.decompress(hypervisor.read_bytes()))
    shutil.copyfile(tree.vmlinuz, output / "vmlinuz")
    (output / "initrd.img").write_bytes(tree.dom0_initramfs())

    image = output / "root.img"
    with image.open("wb") as handle:
        handle.truncate(ROOT_SIZE_MIB << 20)
    subprocess.run(
        # No journal: the disk is thrown away with each run.
        ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "xenvm", "-m", "0",
         "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1",
         "-d", tree.root, image],
        check=True,
    )  # fmt: skip
    image.chmod(0o444)
    manifest = {
        "release": name,
        "xen": tree.release.xen,
        "kernel": tree.kernel_version,
        "packages": tree.chroot("dpkg-query", "-W").splitlines(),
    }
    (output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    os.sync()


if __name__ == "__main__":
    main(sys.argv[1:])
