# SPDX-License-Identifier: MIT
"""Parts of `pytest --xen`: what is copied, what is logged, what is said of an end."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from xenpy.testing.remote import project as projects
from xenpy.testing.remote.asking import options_of
from xenpy.testing.remote.logs import Logs, tail
from xenpy.testing.remote.order import Event, Order, Section
from xenpy.testing.remote.project import CARRIED, Project, carried, files_of
from xenpy.testing.remote.replay import named
from xenpy.testing.remote.stream import Failure, Stream
from xenpy.vm.errors import VmDiedError, VmError

ORDER = Order("/", [], ["a b", "ü\udc80"], {"x": [1, None, "y"]}, ["t.py::test[\n]"], live=False)


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


FILES = ["lamp/__init__.py", "tests/conftest.py", "tests/data/x.bin"]
NO_FILES = [
    "lamp/__pycache__/x.pyc", "lamp/_c.so", ".venv/pyvenv.cfg", ".venv/lib/y.py", ".pytest_cache/z",
]  # fmt: skip


@pytest.mark.parametrize("git", ["plain", "git", "below git", "ignored by git"])
def test_what_belongs_to_a_project(tmp_path: Path, git: str) -> None:
    root = tmp_path / "lamp"
    write(root, *FILES, *NO_FILES)
    (root / "latest").symlink_to("tests/data")
    ignored = "__pycache__/\n.venv/\n.pytest_cache/\n"
    if git != "plain":
        top = root if git == "git" else tmp_path
        (top / ".git-ignored").write_text(ignored + ("lamp/\n" if git == "ignored by git" else ""))
        subprocess.run(["git", "-C", top, "init", "-q"], check=True)
        subprocess.run(
            ["git", "-C", top, "config", "core.excludesFile", top / ".git-ignored"], check=True
        )
    assert set(files_of(root)) - {".git-ignored"} == {*FILES, "latest"}


def test_a_file_that_git_ignores_is_copied_if_it_is_needed(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "secret/test_b.py")
    (tmp_path / ".gitignore").write_text("secret/\n")
    subprocess.run(["git", "-C", tmp_path, "init", "-q"], check=True)
    found = Project.scan(tmp_path, [tmp_path / "secret/test_b.py"])
    assert found.files == (".gitignore", "a.py", "secret/test_b.py")
    with tarfile.open(fileobj=io.BytesIO(found.pack())) as tar:
        assert tuple(tar.getnames()) == found.files


def test_a_name_of_any_length(tmp_path: Path) -> None:
    name = "/".join(["d" * 200, "e" * 200, "f" * 200])
    write(tmp_path, name)
    with tarfile.open(fileobj=io.BytesIO(Project.scan(tmp_path, []).pack())) as tar:
        assert tar.getnames() == [name]


def test_a_project_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projects, "SIZE_LIMIT", 1 << 20)
    with (tmp_path / "disk.img").open("wb") as file:
        file.truncate(2 << 20)
    with pytest.raises(VmError, match=r"has 2 MiB of files, .* the largest: disk\.img") as raised:
        Project.scan(tmp_path, [])
    assert "--rootdir" in raised.value.hint


def test_modules_are_found_where_they_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "src/lamp.py", "lib/a.py", ".venv/lib/site-packages/b.py")
    for name in (".venv/lib/site-packages", "absent", "lib"):
        monkeypatch.syspath_prepend(tmp_path / name)
    found = Project.scan(tmp_path, [], ["pluggy"])
    inside = [f"{tmp_path}/lib", f"{tmp_path}", f"{tmp_path}/src"]
    assert found.module_path == [*inside, CARRIED]


def test_a_distribution_is_carried_with_its_entry_points() -> None:
    found = Project(Path("/"), (), (), ("pytest-timeout",))
    with tarfile.open(fileobj=io.BytesIO(found.pack_carried())) as tar:
        names = tar.getnames()
    assert "pytest_timeout.py" in names
    assert any(name.endswith(".dist-info/entry_points.txt") for name in names)
    assert not any(name.endswith(".pyc") or ".." in name for name in names)


def test_what_cannot_be_carried() -> None:
    with pytest.raises(VmError, match="no distribution 'no-such-thing'"):
        carried("no-such-thing")
    with pytest.raises(VmError, match=r"cffi has a compiled part, .*\.so"):
        carried("cffi")


def test_logs_of_the_time_since(tmp_path: Path) -> None:
    guest, other = tmp_path / "console/guest-web.log", tmp_path / "xl-web.log"
    write(tmp_path, "console/guest-web.log", "not-a.txt")
    guest.write_text("before\n")
    logs = Logs(tmp_path, tmp_path / "no-kmsg")
    assert logs.since() == []
    with guest.open("a") as file:
        file.write("\x1b[6nwith\x1b]0;title\x07in\r\n")
    other.write_text("made\n")
    assert logs.since() == [(str(guest), "with]0;titlein"), (str(other), "made")]
    logs.mark()
    guest.write_text("new\n")  # as after logrotate: shorter than it was
    assert logs.since() == [(str(guest), "new")]
    logs.close()
    logs.close()


def test_the_kernel_s_log_is_read_record_by_record(tmp_path: Path) -> None:
    """A pipe gives what is written as /dev/kmsg does, if it is read before the next is."""
    kmsg = tmp_path / "kmsg"
    os.mkfifo(kmsg)
    keep = os.open(kmsg, os.O_RDWR)
    logs = Logs(tmp_path, kmsg)
    os.write(keep, b"6,1041,88;vbd 1-51712: 1 queue\n SUBSYSTEM=xen\n")
    assert logs.since() == [("dom0's kernel", "vbd 1-51712: 1 queue")]
    logs.close()
    os.close(keep)


def test_a_log_s_end() -> None:
    assert tail("a\nb\nc\n", 2) == "... 1 lines more\nb\nc"
    assert tail("a\nb", 2) == "a\nb"


def test_an_order_and_an_event_survive_the_way() -> None:
    assert Order.from_json(ORDER.to_json()) == ORDER
    event = Event("report", "t.py::test[ü\udc80]", {"a": [1]})
    line = event.to_line()
    assert line.count("\n") == 1
    assert Event.from_line(line.encode()) == event
    assert Event.from_line(line.encode()[:-3]) is None
    assert Event("x", "", {"path": Path("/a")}).to_line() == '["x", "", {"path": "/a"}]\n'


def test_a_release_becomes_a_parameter() -> None:
    assert named("t.py::test", "trixie") == "t.py::test[trixie]"
    assert named("t.py::test[1]", "trixie") == "t.py::test[1-trixie]"


def test_options_are_passed_that_somebody_gave() -> None:
    given = argparse.Namespace(
        lamp=["a", 1], showlocals=True, log_level=None, keyword="x", durations=0, usepdb=True,
        plugin=object(),
    )  # fmt: skip
    config = cast(pytest.Config, argparse.Namespace(option=given))
    assert options_of(config) == {"lamp": ["a", 1], "showlocals": True}


class Scripted:
    """A `Dom0` whose `run` is a function."""

    def __init__(self, run: Callable[[int], int]) -> None:
        self._run = run

    def run(self, order: Order, events: int) -> int:
        return self._run(events)

    def console(self) -> str:
        return ""

    def last_words(self, *, alive: bool) -> list[Section]:
        return []


def kinds(run: Callable[[int], int], patience: float = 60.0) -> list[str]:
    with Stream(Scripted(run), ORDER, patience) as stream:
        return [event.kind for event in stream.events()]


def test_events_come_until_the_end_however_they_are_cut() -> None:
    lines = "".join(Event(kind).to_line() for kind in ("start", "finish", "end")).encode()
    goes_on = threading.Event()

    def run(events: int) -> int:
        for place in range(0, len(lines), 7):
            os.write(events, lines[place : place + 7])
        assert goes_on.wait(60), "the stream waits for more than the end"
        return 0

    assert kinds(run) == ["start", "finish", "end"]
    goes_on.set()


def test_what_is_no_event_is_passed_over() -> None:
    assert kinds(lambda events: os.write(events, b'garbage\n["end", "", {}]\n')) == ["end"]


def ends(how: int | BaseException) -> Failure:
    def run(_: int) -> int:
        if isinstance(how, int):
            return how
        raise how

    with pytest.raises(Failure) as raised:
        kinds(run)
    return raised.value


def test_an_end_too_early_says_why() -> None:
    assert str(ends(7)) == "pytest in dom0 ended with status 7, before its end"
    assert str(ends(128 + 9)) == "pytest in dom0 was killed by SIGKILL, before its end"
    assert ends(7).alive
    died = ends(VmDiedError("Xen panicked", hint="see above", details="(XEN) x"))
    assert (str(died), died.details, died.alive) == ("Xen panicked (see above)", "(XEN) x", False)
    assert str(ends(OSError(2, "no ssh"))) == "FileNotFoundError: [Errno 2] no ssh"


def test_silence_ends_too() -> None:
    goes_on = threading.Event()
    with pytest.raises(Failure, match=r"nothing came from dom0 for 0 s") as raised:
        kinds(lambda _: int(goes_on.wait(60)), 0.2)
    assert raised.value.alive
    goes_on.set()


def test_dom0_needs_no_more_than_pytest() -> None:
    """It starts for each module: neither the machinery of the VM nor the C part is imported."""
    code = (
        "import sys, xenpy.testing.remote.dom0\n"
        "print([name for name in sys.modules if name.startswith(('xenpy.vm.', 'xenpy._ffi'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['xenpy.vm.console']\n"
