# SPDX-License-Identifier: MIT
"""The cache directory: nothing half-made is ever seen, no lock outlives its holder."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from xenpy.vm import venv
from xenpy.vm.cache import Cache, digest, remove_tree
from xenpy.vm.checkout import Checkout
from xenpy.vm.errors import VmError
from xenpy.vm.machine import scratch_directory

ROOT = Path(__file__).parents[3]
EMPTY_TAR = bytes(10240)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XENVM_CACHE", str(tmp_path / "here"))
    assert Cache().root == tmp_path / "here"
    monkeypatch.delenv("XENVM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache().root == tmp_path / "xenvm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache().root == tmp_path / ".cache/xenvm"


def test_digest_frames_its_parts() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab", "") != digest("ab")
    assert digest("ä") == digest("ä".encode())


def test_what_is_built_appears_at_once(cache: Cache) -> None:
    final = cache.root / "images" / "one"
    with cache.building(final) as work:
        (work / "file").write_text("x")
        assert not final.exists()
    assert (final / "file").read_text() == "x"
    assert [entry.name for entry in final.parent.iterdir()] == ["one"]


def test_what_fails_leaves_nothing(cache: Cache) -> None:
    final = cache.root / "images" / "one"

    def build() -> None:
        with cache.building(final) as work:
            (work / "file").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert list(final.parent.iterdir()) == []


def test_what_a_killed_build_left_goes_with_the_next(cache: Cache) -> None:
    left, other = cache.directory("images", ".one.x7z"), cache.directory("images", ".two.x7z")
    (left / "file").touch()
    with cache.building(cache.root / "images" / "one") as work:
        assert work.is_dir()
        assert not left.exists()
    assert other.is_dir(), "somebody may be building it"


def test_one_process_builds_for_the_host_at_a_time(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds: list[Path] = []

    def build(_cache: Cache, _python: Path, _tree: Path, final: Path) -> None:
        builds.append(final)
        time.sleep(0.2)
        final.mkdir(parents=True)

    def stage(name: str) -> None:
        place = tmp_path / name
        place.mkdir()
        checkout = cast(Checkout, SimpleNamespace(pack=lambda: EMPTY_TAR, c_key=lambda: "key"))
        venv.stage(cache, checkout, Path("python"), place)

    monkeypatch.setattr(venv, "_build", build)
    threads = [threading.Thread(target=stage, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(builds) == 1


def test_a_rebuild_replaces(cache: Cache) -> None:
    final = cache.root / "one"
    for text in ("old", "new"):
        with cache.building(final) as work:
            (work / text).touch()
    assert [entry.name for entry in final.iterdir()] == ["new"]


def test_no_disk_space_is_said_before_the_work(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(1 << 40, 1 << 40, 100 << 20))
    cache.need_space(100, "a small thing")
    with pytest.raises(VmError, match="no disk space: an image needs 101 MiB in ") as caught:
        cache.need_space(101, "an image")
    assert str(caught.value).endswith("100 MiB are free")
    assert "XENVM_CACHE" in caught.value.hint


def test_no_place_for_a_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VmError, match=r"cannot make .*Not a directory"):
        Cache(tmp_path / "file").directory("locks")


def test_a_lock_left_by_a_dead_process_is_no_lock(cache: Cache) -> None:
    (cache.directory("locks") / "one").write_text("4194304\n")
    began = time.monotonic()
    with cache.locked("one", "testing"):
        assert (cache.root / "locks/one").read_text() == f"{os.getpid()}\n"
    assert time.monotonic() - began < 5


HOLD = """
import sys, time
from pathlib import Path
from xenpy.vm.cache import Cache
with Cache(Path(sys.argv[1])).locked("one", "holding"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(cache: Cache, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(cache.root), str(seconds)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_held_lock_is_waited_for(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xenpy.vm.progress._show_after", 0.1)
    with holder(cache, 0.7) as process:
        with cache.locked("one", "making it"):
            assert process.poll() is not None or process.wait(5) == 0
        assert f"waiting for process {process.pid} (making it)" in capsys.readouterr().err


def test_a_killed_holder_frees_the_lock(cache: Cache) -> None:
    with holder(cache, 60) as process:
        process.kill()
        process.wait()
        began = time.monotonic()
        with cache.locked("one", "testing"):
            pass
        assert time.monotonic() - began < 5


def test_run_directories_of_the_dead_are_removed(cache: Cache) -> None:
    dead = cache.directory("run", "123.dead")
    (dead / "disk.qcow2").touch()
    with scratch_directory(cache) as mine:
        assert not dead.exists()
        with scratch_directory(cache) as other:
            assert mine.is_dir()
            assert other != mine
    assert list((cache.root / "run").iterdir()) == []


def test_a_run_directory_that_is_being_made_is_not_of_the_dead(cache: Cache) -> None:
    swept: list[bool] = []

    def another() -> None:
        with scratch_directory(cache):
            swept.append(not mine.exists())

    thread = threading.Thread(target=another)
    with cache.locked("run", "making a run directory"):
        mine = cache.directory("run", "123.new")
        thread.start()
        thread.join(0.3)
        lock = (mine / "lock").open("a")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        thread.join(10)
    assert swept == [False]


def test_sweep_keeps_the_youngest_and_the_kept(cache: Cache) -> None:
    directory = cache.directory("images")
    for age, name in enumerate(("a", "b", "c", "d")):
        (directory / name).mkdir()
        os.utime(directory / name, (1000 + age, 1000 + age))
    (directory / ".building").mkdir()
    cache.sweep(directory, [directory / "a"], limit=2)
    assert sorted(entry.name for entry in directory.iterdir()) == [".building", "a", "c", "d"]
    cache.sweep(cache.root / "none", [], limit=1)


def test_remove_tree_takes_anything(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (tmp_path / "link", tmp_path / "none", tmp_path):
        remove_tree(path)
        assert not path.is_symlink()
        assert not path.exists()
