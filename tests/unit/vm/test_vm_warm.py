# SPDX-License-Identifier: MIT
"""Making a warm snapshot when dom0 hangs on its way up."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import cast

import pytest

from xenpy.vm import warm
from xenpy.vm.cache import Cache
from xenpy.vm.errors import BootTimeoutError, VmDiedError
from xenpy.vm.image import Image
from xenpy.vm.qemu import Machine
from xenpy.vm.releases import RELEASES
from xenpy.vm.warm import Warm


def boots(
    monkeypatch: pytest.MonkeyPatch, directory: Path, *outcomes: Exception | None
) -> list[list[str]]:
    """Boot as often as it takes; what was in the directory at the start of each."""
    found: list[list[str]] = []
    rest = list(outcomes)

    def make(_cache: Cache, _image: Image, _machine: Machine, snapshot: Warm) -> None:
        found.append([path.name for path in snapshot.directory.iterdir()])
        snapshot.disk.touch()
        error = rest.pop(0)
        if error is not None:
            raise error

    monkeypatch.setattr(warm, "_make", make)
    warm._make_or_retry(cast(Cache, None), cast(Image, None), cast(Machine, None), Warm(directory))
    return found


def test_a_boot_that_hangs_is_tried_once_more_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert boots(monkeypatch, tmp_path, BootTimeoutError("not ready"), None) == [[], []]
    assert "not ready: booting once more" in capfd.readouterr().err


def test_one_that_hangs_twice_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BootTimeoutError, match="again"):
        boots(monkeypatch, tmp_path, BootTimeoutError("once"), BootTimeoutError("again"))


def test_one_that_dies_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VmDiedError, match="panic"):
        boots(monkeypatch, tmp_path, VmDiedError("panic"))


@pytest.fixture
def image(tmp_path: Path) -> Image:
    image = Image(RELEASES["trixie"], "trixie-key", tmp_path, tmp_path / "tree")
    image.root.write_bytes(b"first")
    return image


@pytest.fixture
def made() -> list[Warm]:
    """The snapshots that were made."""
    return []


@pytest.fixture
def cache(tmp_path: Path, made: list[Warm], monkeypatch: pytest.MonkeyPatch) -> Cache:
    """Empty; a snapshot is made in it without a boot."""

    def make(_cache: Cache, _image: Image, _machine: Machine, snapshot: Warm) -> None:
        made.append(snapshot)

    monkeypatch.setattr(warm, "_make", make)
    monkeypatch.setattr(warm, "qemu_version", lambda: "QEMU 7.2")
    monkeypatch.setattr(Cache, "need_space", lambda *_: None)
    return Cache(tmp_path / "cache")


def test_a_snapshot_is_of_one_image_and_not_of_its_recipe(
    cache: Cache, image: Image, made: list[Warm]
) -> None:
    """An image that was swept and made again is another file system: what a snapshot has over the
    first would be rubbish over it."""
    first = warm.ensure(cache, image, Machine())
    assert warm.ensure(cache, image, Machine()) == first
    os.utime(image.root, ns=(1, 1))
    assert warm.ensure(cache, image, Machine()) != first
    assert len(made) == 2
    assert first.directory.is_dir(), "who looked it up just now may be about to start"
    os.utime(image.root, ns=(2, 2))
    warm.ensure(cache, image, Machine())
    assert not first.directory.exists()


def test_machines_of_all_kinds_keep_their_snapshots(cache: Cache, image: Image) -> None:
    """The lanes of `xenvm test` take turns at them."""
    kinds = [
        Machine(), Machine(cpus=2), Machine(init="systemd"), Machine(store="oxenstored"),
        Machine(icount=True),
    ]  # fmt: skip
    snapshots = [warm.ensure(cache, image, machine) for machine in kinds]
    assert all(snapshot.directory.is_dir() for snapshot in snapshots)


def test_a_snapshot_that_nobody_used_for_long_goes(cache: Cache, image: Image) -> None:
    """Of a kind that is never made again, too."""
    unused, used, last = (warm.ensure(cache, image, Machine(cpus=cpus)) for cpus in (2, 3, 4))
    killed = cache.directory("warm", ".trixie-tcg.x7z")
    long_ago = time.time() - 31 * 24 * 3600
    for directory in (unused.directory, used.directory, killed):
        os.utime(directory, (long_ago, long_ago))
    warm.ensure(cache, image, Machine(cpus=3))
    warm.ensure(cache, image, Machine())
    assert not unused.directory.exists()
    assert not killed.exists()
    assert used.directory.is_dir()
    assert last.directory.is_dir()
