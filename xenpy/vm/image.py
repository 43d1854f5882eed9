# SPDX-License-Identifier: MIT
"""The dom0 image: what is in it, and the recipe that makes it from Debian packages.

Two cached stages, each keyed by a hash of its recipe:

    base/RELEASE-KEY/tree      what mmdebstrap unpacks; also the chroot for C builds
    images/RELEASE-KEY/        root.img, xen, vmlinuz, initrd.img, manifest.json

No loop device and no root mount: mke2fs copies the tree into the file system by itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from xenpy.vm import namespace, progress
from xenpy.vm.cache import Cache, digest
from xenpy.vm.releases import Release
from xenpy.vm.ssh import Keys

__all__ = ["Image", "base_key", "ensure", "image_key", "locked_tree"]

PACKAGES = (
    # the machine
    "linux-image-amd64", "xenstore-utils", "openssh-server", "busybox-static", "dropbear-bin",
    "e2fsprogs", "iproute2", "kmod", "procps", "util-linux", "mount", "sudo",
    # what tests and drivers are run with
    "python3", "python3-cffi", "python3-pyxs", "python3-pytest", "python3-pytest-timeout",
    "python3-hypothesis", "python3-libnbd", "python3-prometheus-client", "qemu-utils", "fio",
    "strace", "dmsetup", "systemd",
    # the rival of the benchmark: libxl runs it for backendtype=qdisk
    "qemu-system-xen",
    # what xenpy's C part is built with, in a chroot of the same tree
    "gcc", "libc6-dev", "libxen-dev", "python3-dev", "python3-setuptools",
)  # fmt: skip

DROPPED = (
    # documentation, translations, and what nobody runs in an emulated machine
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*",
    "/usr/share/javascript/*", "/usr/share/lintian/*", "/usr/share/zoneinfo/*",
    "/usr/lib/udev/hwdb.d/*", "/lib/udev/hwdb.d/*",
    "/usr/libexec/gcc/*/lto1", "/usr/lib/gcc/x86_64-linux-gnu/*/lto1",
    # drivers of hardware that QEMU does not have here
    *(
        f"{top}/modules/*/kernel/{part}/*"
        for top in ("/lib", "/usr/lib")
        for part in (
            "drivers/gpu", "drivers/media", "drivers/usb", "drivers/infiniband", "drivers/iio",
            "drivers/staging", "drivers/hwmon", "drivers/isdn", "drivers/mtd", "drivers/mmc",
            "drivers/hid", "drivers/input", "drivers/platform", "drivers/bluetooth",
            "drivers/power", "drivers/leds", "drivers/rtc", "drivers/edac", "drivers/pinctrl",
            "drivers/accel", "drivers/comedi", "drivers/crypto", "drivers/thunderbolt",
            "drivers/net/ethernet", "drivers/net/wireless", "drivers/net/usb", "drivers/net/can",
            "drivers/net/phy", "drivers/net/wwan", "drivers/net/dsa", "drivers/ata",
            "drivers/i2c", "drivers/mfd", "drivers/nfc", "drivers/scsi", "drivers/firewire",
            "net/bluetooth", "net/wireless", "net/mac80211", "net/nfc", "net/can", "net/batman-adv",
            "sound", "fs/ocfs2", "fs/nfs", "fs/nfsd", "fs/smb", "fs/ceph", "fs/gfs2", "fs/afs",
            "fs/bcachefs", "fs/ubifs", "fs/jffs2", "fs/coda", "fs/dlm", "fs/xfs", "fs/reiserfs",
            "fs/jfs", "fs/f2fs", "fs/nilfs2",
        )
    ),
)  # fmt: skip

KEPT = tuple(
    f"{top}/modules/*/kernel/{part}"
    for top in ("/lib", "/usr/lib")
    for part in (
        "drivers/scsi/scsi_mod*", "drivers/scsi/scsi_common*", "drivers/scsi/sd_mod*",
        "drivers/scsi/xen-scsifront*", "drivers/gpu/drm/drm*", "drivers/gpu/drm/xen/*",
        "drivers/input/misc/xen-*", "sound/core/*", "sound/xen/*", "sound/soundcore*",
    )
)  # fmt: skip

DOM0_MODULES = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic"]
GUEST_MODULES = ["xen_blkfront", "xen_netfront", "ext4", "crc32c_generic", "loop"]

ROOT_SIZE_MIB = 4096
RECIPE_VERSION = "3"

DATA = Path(__file__).with_name("data")


@dataclass(frozen=True)
class Image:
    """A finished image.  All files are read-only for everyone who uses it."""

    release: Release
    key: str
    directory: Path
    tree: Path

    @property
    def root(self) -> Path:
        """The root file system, a raw file."""
        return self.directory / "root.img"

    @property
    def identity(self) -> str:
        """Changes also when the same recipe was made once more: no two file systems are the same,
        and what lies over one of them is rubbish over the other."""
        return f"{self.key}-{self.root.stat().st_mtime_ns}"

    @property
    def xen(self) -> Path:
        """The hypervisor as an ELF, for QEMU's multiboot loader."""
        return self.directory / "xen"

    @property
    def kernel(self) -> Path:
        """dom0's kernel."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """dom0's initramfs."""
        return self.directory / "initrd.img"


def mirror() -> str:
    """The Debian mirror: `$XENVM_MIRROR`, or Debian's own."""
    return os.environ.get("XENVM_MIRROR", "http://deb.debian.org/debian")


def base_packages(release: Release) -> list[str]:
    """Everything that is installed in the tree, without what it depends on."""
    return [
        *PACKAGES,
        f"xen-hypervisor-{release.xen}-amd64",
        f"xen-utils-{release.xen}",
        *release.packages,
    ]


def base_key(release: Release) -> str:
    """Changes when another set of packages or files would be unpacked."""
    return digest(release.name, *base_packages(release), *DROPPED, *KEPT, RECIPE_VERSION)


def image_key(release: Release, keys: Keys) -> str:
    """Changes when anything in the image would."""
    data = [
        part
        for directory in ("dom0", "guest")
        for path in sorted((DATA / directory).rglob("*"))
        if path.is_file()
        for part in (os.fspath(path.relative_to(DATA)).encode(), path.read_bytes())
    ]
    code = [Path(__file__).with_name(name).read_bytes() for name in ("tree.py", "initramfs.py")]
    modules = [*DOM0_MODULES, *GUEST_MODULES]
    return digest(base_key(release), keys.fingerprint, str(ROOT_SIZE_MIB), *modules, *data, *code)


def ensure(cache: Cache, release: Release) -> Image:
    """The image of `release`, built if there is none for the present recipe."""
    keys = Keys.ensure(cache)
    base = _base(cache, release)
    final = cache.root / "images" / f"{release.name}-{image_key(release, keys)}"
    image = Image(release, final.name, final, base / "tree")
    if final.is_dir() and base.is_dir():
        return image
    with locked_tree(cache, release):
        if not final.is_dir():
            _build_image(cache, release, base, final, keys)
        cache.sweep(base.parent, _youngest(base.parent, release), limit=4)
        cache.sweep(final.parent, _youngest(final.parent, release), limit=4)
    return image


@contextmanager
def locked_tree(cache: Cache, release: Release) -> Generator[Path, None, None]:
    """The unpacked tree of `release`, built if there is none; nobody changes it meanwhile."""
    base = _base(cache, release)
    with cache.locked(f"image-{release.name}", f"building the image of {release.name}"):
        if not base.is_dir():
            _build_base(cache, release, base)
        yield base / "tree"


def _base(cache: Cache, release: Release) -> Path:
    return cache.root / "base" / f"{release.name}-{base_key(release)}"


def _youngest(directory: Path, release: Release) -> list[Path]:
    """What the sweep of old builds must keep: the newest of each release."""
    newest: dict[str, Path] = {}
    for entry in sorted(directory.iterdir(), key=lambda entry: entry.stat().st_mtime):
        newest[entry.name.partition("-")[0]] = entry
    return list(newest.values())


def _build_base(cache: Cache, release: Release, base: Path) -> None:
    cache.need_space(4000, f"the image of {release.name}")
    log = cache.directory("log") / f"mmdebstrap-{release.name}.log"
    log.unlink(missing_ok=True)
    options: list[str] = [
        "--variant=apt",
        f"--include={','.join(base_packages(release))}",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in DROPPED),
        *(f"--dpkgopt=path-include={pattern}" for pattern in KEPT),
    ]
    sources = [
        f"deb {mirror()} {release.name} main",
        f"deb {mirror()} {release.name}-updates main",
        f"deb {mirror().replace('/debian', '/debian-security')} {release.name}-security main",
    ]
    # INITRD=No: the kernel package would spend half a minute on an initrd that nobody boots.
    env = {"INITRD": "No", "LC_ALL": "C.UTF-8"}
    with (
        progress.step(f"installing Debian {release.name} with Xen {release.xen} (about 90 s)"),
        cache.building(base) as work,
    ):
        tree = work / "tree"
        if namespace.is_root():
            env["TMPDIR"] = os.fspath(cache.directory("tmp"))
            command = ["mmdebstrap", "--mode=root", "--format=directory", *options]
            namespace.run(
                [*command, release.name, tree, *sources], what="mmdebstrap", log=log, env=env
            )
        else:
            archive = work / "tree.tar"
            command = ["mmdebstrap", "--mode=unshare", "--format=tar", *options]
            namespace.run(
                [*command, release.name, archive, *sources],
                what="mmdebstrap", log=log, env=env, private=False,
            )  # fmt: skip
            tree.mkdir()
            unpack = ["tar", "-C", os.fspath(tree), "--exclude=./dev/*", "-xpf", os.fspath(archive)]
            namespace.run(unpack, what="unpacking the tree", log=log)
            archive.unlink()


def _build_image(cache: Cache, release: Release, base: Path, final: Path, keys: Keys) -> None:
    cache.need_space(2500, f"the image of {release.name}")
    log = cache.directory("log") / f"image-{release.name}.log"
    log.unlink(missing_ok=True)
    package_root = os.fspath(Path(__file__).resolve().parents[2])
    with progress.step(f"making the disk image of {release.name}"), cache.building(final) as work:
        command = [sys.executable, "-m", "xenpy.vm.tree"]
        namespace.run(
            [*command, release.name, base / "tree", work, keys.directory],
            what="making the image",
            log=log,
            env={"PYTHONPATH": package_root, "PYTHONDONTWRITEBYTECODE": "1"},
        )
