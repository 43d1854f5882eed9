# SPDX-License-Identifier: MIT
"""The Vagrant box's pure parts: the boot sectors, GRUB's configuration, the archive."""

from __future__ import annotations

import json
import re
import shutil
import struct
import tarfile
from pathlib import Path

import pytest

from xenpy.vm import bootdisk, box, box_tree, cli, host, image
from xenpy.vm.cache import Cache
from xenpy.vm.context import Context
from xenpy.vm.errors import HARNESS, VmError
from xenpy.vm.releases import RELEASES, Release
from xenpy.vm.ssh import Keys

BOOT = bytes(range(256)) + bytes(254) + b"\x55\xaa"
GIB = 1 << 30


def partition(sectors: bytes) -> tuple[int, int, int, int]:
    """The first partition's flag, type, first sector and length, in sectors."""
    return struct.unpack_from("<B3xB3xII", sectors, 446)


# The disk


def test_the_boot_code_is_grub_s() -> None:
    sectors = bootdisk.boot_sectors(BOOT, b"core", GIB)
    assert sectors[:440] == BOOT[:440]
    assert sectors[510:] == b"\x55\xaacore"


def test_one_partition_reaches_to_the_end() -> None:
    sectors = bootdisk.boot_sectors(BOOT, b"core", GIB)
    first = bootdisk.PARTITION_OFFSET // 512
    assert partition(sectors) == (0x80, 0x83, first, GIB // 512 - first)
    assert sectors[462:510] == bytes(48), "three entries that are not used"


def test_the_core_image_must_fit() -> None:
    room = bootdisk.PARTITION_OFFSET - 512
    assert len(bootdisk.boot_sectors(BOOT, bytes(room), GIB)) == bootdisk.PARTITION_OFFSET
    with pytest.raises(VmError, match="does not fit"):
        bootdisk.boot_sectors(BOOT, bytes(room + 1), GIB)


@pytest.mark.parametrize("boot", [BOOT[:-1], BOOT + b"\0", bytes(512)])
def test_a_boot_sector_has_512_bytes_and_a_mark(boot: bytes) -> None:
    with pytest.raises(VmError, match="not a boot sector"):
        bootdisk.boot_sectors(boot, b"core", GIB)


def test_grub_finds_its_files_where_the_partition_is() -> None:
    command = bootdisk.mkimage_command(Path("core.img"))
    assert command[0] == "grub-mkimage"
    assert "--prefix=(hd0,msdos1)/boot/grub" in command
    assert {"ext2", "part_msdos", "multiboot2", "gzio"} <= set(command)


def test_the_file_system_fills_the_partition() -> None:
    command = box_tree.mke2fs_command(Path("tree"), Path("disk"), GIB)
    sectors = partition(bootdisk.boot_sectors(BOOT, b"core", GIB))[3]
    assert command[-2:] == ["disk", f"{sectors // 2}k"]
    assert f"offset={bootdisk.PARTITION_OFFSET}," in command[command.index("-E") + 1]
    assert command[command.index("-d") + 1] == "tree"


# What it boots


@pytest.mark.parametrize("row", RELEASES.values(), ids=list(RELEASES))
def test_the_menu_boots_xen_and_then_dom0(row: Release) -> None:
    text = box_tree.boot_menu(row, "6.1-amd64")
    lines = [line.split() for line in text.splitlines() if line.startswith("    ")]
    (xen, kernel, initrd) = lines
    assert xen[:2] == ["multiboot2", f"/boot/{row.hypervisor}"]
    assert {"smap=0", "console=com1"} <= set(xen)
    assert kernel[:2] == ["module2", "/boot/vmlinuz-6.1-amd64"]
    assert {"root=/dev/vda1", "xenvm.net=dhcp"} <= set(kernel)
    assert [word for word in kernel if word.startswith("root=")] == ["root=/dev/vda1"]
    assert initrd == ["module2", "--nounzip", box_tree.INITRD]


def test_dom0_knows_the_words_of_its_command_line() -> None:
    setup = (image.DATA / "dom0/setup").read_text()
    known = set(re.findall(r"(xenvm\.\w+)=\*\)", setup))
    given = re.findall(r"(xenvm\.\w+)=", box_tree.MACHINE.kernel_command_line())
    assert set(given) <= known


def test_the_machine_of_the_other_verbs_is_as_it_was() -> None:
    assert "root=/dev/vda" in Context().machine.kernel_command_line().split()


# The box


def test_metadata() -> None:
    values = json.loads(box.metadata())
    assert values == {"provider": "libvirt", "format": "qcow2", "virtual_size": box.DISK_GIB}


def test_the_disk_is_not_compressed_twice() -> None:
    command = box.convert_command(Path("disk"), Path("box.img"))
    assert command == ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk", "box.img"]


def test_the_archive_holds_what_vagrant_looks_for_and_nobody_s_name(tmp_path: Path) -> None:
    for name in (*box.FILES, "core.img"):
        (tmp_path / name).write_text(name)
    box.pack(tmp_path, tmp_path / "a.box")
    with tarfile.open(tmp_path / "a.box", "r:gz") as tar:
        members = tar.getmembers()
        contents = {member.name: tar.extractfile(member) for member in members}
        assert [member.name for member in members] == list(box.FILES)
        assert {(m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
            (0, 0, "root", "root", 0o644)
        }
        for name, content in contents.items():
            assert content is not None
            assert content.read() == name.encode()


def test_the_vagrantfiles_agree() -> None:
    """What vagrant/Vagrantfile repeats of the box's own says the same."""
    pattern = re.compile(r"^ *(libvirt\.\w+|config\.vm\.synced_folder) ?=? ?(.*)$", re.MULTILINE)
    ours = Path(__file__).resolve().parents[3] / "vagrant/Vagrantfile"
    user, inside = (
        dict(pattern.findall(path.read_text())) for path in (ours, image.DATA / "box/Vagrantfile")
    )
    assert user["libvirt.driver"] == '"qemu"'
    assert user.items() <= inside.items()


def test_a_change_of_the_box_leaves_the_image_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, keys = tmp_path / "data", Keys(tmp_path)
    shutil.copytree(image.DATA, data)
    monkeypatch.setattr(image, "DATA", data)
    for name in ("host", "client", "guest"):
        (tmp_path / f"{name}_key.pub").touch()
    before = image.image_key(RELEASES["trixie"], keys)
    (data / "box/sudoers").write_text("other\n")
    assert image.image_key(RELEASES["trixie"], keys) == before
    (data / "dom0/setup").write_text("other\n")
    assert image.image_key(RELEASES["trixie"], keys) != before


# The verb


def test_a_box_can_only_be_put_where_there_is_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "ensure_packages", lambda _: pytest.fail("too early"))
    assert cli.main(["box", "--output", str(tmp_path / "none/a.box")]) == HARNESS
    assert f"there is no directory {tmp_path / 'none'}" in capsys.readouterr().err


def test_the_verb_names_its_packages_and_the_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted: list[str] = []
    made: list[Release] = []

    def make(cache: Cache, release: Release, output: Path) -> None:
        made.append(release)
        output.write_bytes(bytes(3 << 20))

    monkeypatch.setattr(host, "ensure_packages", wanted.extend)
    monkeypatch.setattr(box, "make", make)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["box", "--release", "bookworm"]) == 0
    assert capsys.readouterr().out == "xenvm-bookworm.box: Xen 4.17 (bookworm), 3 MiB\n"
    assert made == [RELEASES["bookworm"]]
    assert {"grub-pc-bin", "grub-common", "mmdebstrap"} <= set(wanted)
    assert "vagrant" not in wanted
