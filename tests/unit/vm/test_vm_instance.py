# SPDX-License-Identifier: MIT
"""The machine of `xenvm up`: it is the one that was asked for, and who asks for another is told."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest

from xenpy.vm import cli, supervisor
from xenpy.vm.cache import Cache
from xenpy.vm.context import Context
from xenpy.vm.errors import UsageError, VmError
from xenpy.vm.instance import Info, Instance
from xenpy.vm.machine import scratch_directory
from xenpy.vm.qemu import Machine, Sockets
from xenpy.vm.ssh import Keys, Link

INFO = Info(
    name="default", release="trixie", xen="4.20", accelerator="tcg", store="xenstored", pid=1,
    qemu_pid=2, port=3, started=4.0, idle_seconds=5.0,
)  # fmt: skip


def options(*words: str) -> Context:
    """What the command line makes of the words."""
    return cli._context(cli.parser().parse_args(words))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("XENVM_CACHE", str(tmp_path))
    return Cache()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--cpus", "2", "--init", "systemd", "--store", "oxenstored", "--memory", "5000"],
        ["--cold", "--watchdog", "7", "--icount"],
    ],
)
def test_the_supervisor_gets_all_that_was_asked_for(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    commands: list[list[str]] = []
    supervised: list[tuple[Context, float]] = []

    def popen(command: list[str], **_: Any) -> None:
        commands.append(command)

    running = iter([False, True])
    monkeypatch.setattr(Instance, "is_running", lambda _: next(running))
    monkeypatch.setattr(Instance, "info", lambda _: INFO)
    monkeypatch.setattr(supervisor.subprocess, "Popen", popen)
    monkeypatch.setattr(supervisor, "end_on_signals", lambda: None)
    monkeypatch.setattr(supervisor.signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        supervisor, "_supervise", lambda context, idle: supervised.append((context, idle))
    )
    context = options("up", "--name", "one", *words)
    supervisor.launch(context, 60.0)
    assert supervisor.main(commands[0][3:]) == 0
    [(got, idle)] = supervised
    assert idle == 60.0
    assert (got.machine, got.cold, got.patience) == (
        context.machine,
        context.cold,
        context.patience,
    )
    assert (got.name, got.release, got.cache.root) == ("one", context.release, cache.root)


def test_a_machine_goes_from_process_to_process() -> None:
    machine = Machine(cpus=2, init="systemd", xen_arguments=("a", "b"))
    assert Machine.from_json(machine.as_json()) == machine


def test_what_an_older_version_wrote_can_be_read(cache: Cache) -> None:
    instance = Instance(cache, "default")
    instance.directory.mkdir(parents=True)
    new = {"init", "cpus", "memory", "patience"}
    old = {name: value for name, value in asdict(INFO).items() if name not in new}
    (instance.directory / "info.json").write_text(json.dumps(old))
    assert instance.info() == INFO


@pytest.fixture
def running(cache: Cache) -> Generator[Instance]:
    """An instance of `up`, without a machine."""
    instance = Instance(cache, "default")
    with instance.held():
        instance.write_info(INFO)
        yield instance


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ""),
        (["--cpus", "1", "--store", "xenstored", "--release", "trixie"], ""),
        (["--release", "bookworm"], "runs trixie; this gets a fresh bookworm"),
        (["--cpus", "2"], "has --cpus 1; this gets a fresh machine with --cpus 2"),
        (
            ["--init", "systemd", "--memory", "4096", "--watchdog", "9"],
            "has --init busybox --watchdog 120.0; "
            "this gets a fresh machine with --init systemd --watchdog 9.0",
        ),
    ],
)
def test_an_instance_is_used_where_it_is_what_was_asked_for(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    instance = options("exec", *words).running_instance()
    assert (instance is None) is bool(said)
    told = f"xenvm: instance 'default' {said}\n" if said else ""
    assert capsys.readouterr().err == told


@pytest.mark.usefixtures("running")
def test_what_a_killed_command_left_of_its_ssh_is_removed(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def session(link: Link, _: object) -> Generator[Link]:
        yield link

    monkeypatch.setattr("xenpy.vm.context.Session", session)
    monkeypatch.setattr(Keys, "ensure", lambda _: None)
    left = cache.directory("run", "123.dead")
    with options("push", "a", "b").instance(push=False) as (_, link):
        assert not left.exists()
        mine = cast(Link, link).directory
        assert mine.parent == cache.root / "run"
        with scratch_directory(cache):
            assert mine.is_dir()
    assert not mine.exists()


def test_the_console_of_an_instance_is_kept_too(
    running: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def instance(_: Context) -> Generator[tuple[Instance, None]]:
        yield running, None

    monkeypatch.setattr(Context, "instance", instance)
    (running.directory / Sockets.CONSOLE_LOG).write_text("before")
    context = options("exec", "--save-console", str(tmp_path / "kept"))

    def fail() -> None:
        with context.session(fresh=False):
            (running.directory / Sockets.CONSOLE_LOG).write_text("before and while")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "kept").read_text() == "before and while"


@pytest.mark.usefixtures("cache")
def test_a_machine_that_stays_keeps_its_console_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Context, "prepare", lambda _: pytest.fail("it starts one"))
    arguments = cli.parser().parse_args(["up", "--save-console", str(tmp_path / "kept")])
    with pytest.raises(UsageError, match="--save-console") as caught:
        arguments.run(cli._context(arguments), arguments)
    assert "`xenvm logs`" in caught.value.hint


def test_help_says_what_holds_unless_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["exec", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("(xenstored)", "(busybox)", "(4096)", "Xen's (1)", "(120)", "(trixie)"):
        assert words in text


def test_who_asks_whether_it_runs_does_not_keep_it_from_starting(cache: Cache) -> None:
    instance = Instance(cache, "default")
    instance.directory.mkdir(parents=True)
    with (instance.directory / "lock").open("a") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        timer = threading.Timer(0.2, fcntl.flock, (asking, fcntl.LOCK_UN))
        timer.start()
        with instance.held():
            assert not instance.is_running()
        timer.join()


def test_one_that_runs_is_not_started_again(
    running: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenpy.vm.instance.LOCK_PATIENCE", 0.1)
    with pytest.raises(VmError, match="'default' is running already"), running.held():
        pass


def test_down_never_signals_the_dead_holder(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Instance(cache, "default")
    instance.directory.mkdir(parents=True)
    (instance.directory / "lock").write_text("4194304\n")
    holders: list[int] = []

    def clear(self: Instance) -> bool:
        holders.append(self._holder())
        return False

    monkeypatch.setattr(Instance, "_clear", clear)
    with instance.held():
        pass
    assert set(holders) == {os.getpid()}


def test_only_what_a_dead_one_left_is_told_of(
    cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    instance = Instance(cache, "default")
    disk = instance.directory / "disk.qcow2"
    for told in ("", "xenvm: cleared what a dead instance 'default' left behind\n"):
        with instance.held():
            assert not disk.exists()
            assert capsys.readouterr().err == told
            disk.touch()
        assert capsys.readouterr().err == "", "it ended by itself"
        assert not disk.exists()
        disk.touch()
