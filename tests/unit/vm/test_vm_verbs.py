# SPDX-License-Identifier: MIT
"""What the verbs run in dom0, with a stand-in for the session; and programs that never end."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import pytest

from xenpy.vm import cli, disk, serve, verbs
from xenpy.vm.bench import streams
from xenpy.vm.bench.disks import Shell
from xenpy.vm.context import Context
from xenpy.vm.disk import CommandError


class Dom0:
    """A session whose commands run here."""

    def __init__(self) -> None:
        self.inputs: list[object] = []

    def run(
        self,
        command: Sequence[str] | str,
        *,
        cwd: str = "/",
        stdin: int | None = None,
        stdout: IO[bytes] | None = None,
    ) -> int:
        self.inputs.append(stdin)
        words = ["sh", "-c", command] if isinstance(command, str) else command
        return subprocess.run(words, stdin=stdin, stdout=stdout, check=False).returncode

    def output(self, command: Sequence[str]) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def dom0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dom0:
    """The dom0 of every machine."""
    session = Dom0()

    @contextmanager
    def machine(_: Context, **__: object) -> Generator[Any]:
        yield SimpleNamespace(directory=tmp_path), session

    monkeypatch.setenv("XENVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Context, "fresh", machine)
    monkeypatch.setattr(Context, "instance", machine)
    return session


def run(*words: str, command: Sequence[str] = ()) -> int:
    arguments = cli.parser().parse_args(words)
    arguments.command = list(command)
    status: int = arguments.run(Context(), arguments)
    return status


def test_nothing_eats_the_caller_s_input(
    dom0: Dom0, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`while read f; do xenvm pull "$f" .; done < list` pulled one file."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one/file").write_text("x")
    assert run("pull", str(tmp_path / "one/file"), str(tmp_path / "copy")) == 0
    assert (tmp_path / "copy").read_text() == "x"
    assert run("pull", str(tmp_path / "one"), str(tmp_path / "two")) == 0
    assert (tmp_path / "two/file").read_text() == "x"
    run("bench", "--rounds", "1", command=["true"])
    monkeypatch.setattr(Dom0, "run", lambda self, *_, stdin=None, **__: self.inputs.append(stdin))
    monkeypatch.setattr(Dom0, "output", lambda *_: "{}")
    arguments = argparse.Namespace(json=tmp_path / "demo.json")
    verbs.demo(Context(), arguments)
    run("console", "--guest", "web")
    assert set(dom0.inputs) == {subprocess.DEVNULL}
    assert len(dom0.inputs) >= 3 + 3 + 1 + 1 + 1


@pytest.mark.usefixtures("dom0")
@pytest.mark.parametrize(
    ("line", "status"), [("true", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_a_measured_command_that_is_killed_has_failed(line: str, status: int) -> None:
    assert run("bench", "--rounds", "2", command=["sh", "-c", line]) == status


def test_a_program_that_never_ends_is_a_command_that_failed() -> None:
    with pytest.raises(CommandError, match="sleep 60 did not end within 0 s"):
        disk.run("sleep", "60", timeout=0.1)


def test_a_listener_that_never_ends_is_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PATIENCE", 0.1)
    monkeypatch.setattr(streams, "PROGRAM", "exec sleep 60 #")
    monkeypatch.setattr(streams, "domid", lambda _: "1")
    monkeypatch.setattr(streams.guest, "address", lambda _: "10.77.1.2")
    shell = cast(Shell, SimpleNamespace(run=lambda _: "1"))
    with pytest.raises(CommandError, match="did not end within 0 s"):
        streams.Streams(shell).measure("stream", "libxenvchan")


def test_a_daemon_that_never_ends_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "xenpy"
    program.write_text("#!/bin/sh\ntrap '' TERM\necho serving\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    daemon = serve.Daemon(tmp_path / "run", patience=5.0)
    with pytest.raises(CommandError, match="xenpy serve did not end within 0 s"), daemon:
        daemon._patience = 0.1
    assert daemon._process.returncode == -9
