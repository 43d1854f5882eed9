# SPDX-License-Identifier: MIT
"""The part of the benchmark that runs in dom0, with stand-ins for guest, disks and daemon."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from xenpy.vm.bench import costs, disks, dom0, ring_loop
from xenpy.vm.bench.report import Figures
from xenpy.vm.bench.table import IDLE_SECONDS, OURS
from xenpy.vm.disk import CommandError


class World:
    """What is attached, what ran, and what refuses.

    Attributes:
        refused: targets that the daemon does not serve.
        broken: devices on which fio fails.
        ran: the device of each run of fio.
        attached: the vdevs of our disks.
        environments: of the daemons that were started.
    """

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.broken: set[str] = set()
        self.ran: list[str] = []
        self.attached: list[str] = []
        self.environments: list[Mapping[str, str]] = []
        self.rivals: list[str] = []


class Shell:
    def __init__(self, world: World) -> None:
        self.world = world

    def run(self, line: str) -> str:
        (device,) = [word.partition("=")[2] for word in line.split() if "--filename" in word]
        self.world.ran.append(device)
        if device in self.world.broken:
            raise CommandError("I/O error")
        side = {"total_ios": 1000, "runtime": 1000}
        nothing = {"total_ios": 0, "runtime": 0}
        return json.dumps({"jobs": [{"error": 0, "read": side, "write": nothing}]})

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()

    class Daemon:
        pid = 1

        def __init__(self, environment: Mapping[str, str] | None = None) -> None:
            world.environments.append(environment or {})

        def __enter__(self) -> Daemon:
            return self

        def __exit__(self, *_: object) -> None:
            assert world.attached == [], "the next daemon would take it over"

        def counters(self, vdev: str) -> Mapping[str, int]:
            return {"notifications": 30 * len(world.ran)}

    def attach(_: Shell, vdev: str, target: str) -> None:
        if target in world.refused:
            raise CommandError("no such store")
        world.attached.append(vdev)

    def make_guest(rivals: list[str]) -> dict[str, str]:
        world.rivals = rivals
        return {}

    ticks: Iterator[int] = iter(range(0, 10_000, 1000))
    monkeypatch.setattr(dom0, "Daemon", Daemon)
    monkeypatch.setattr(dom0, "Shell", lambda: Shell(world))
    monkeypatch.setattr(dom0, "WORK", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(disks, "attach", attach)
    monkeypatch.setattr(disks, "detach", world.attached.remove)
    monkeypatch.setattr(disks, "make_guest", make_guest)
    monkeypatch.setattr(disks, "make_image", lambda path, _=0: path)
    monkeypatch.setattr(costs, "sleeps", lambda _: next(ticks) // 100)
    monkeypatch.setattr(costs, "private_bytes", lambda _: 2**20 * len(world.attached))
    monkeypatch.setattr(costs, "bytecodes", lambda _, __: next(ticks))
    return world


@pytest.fixture
def measure(world: World, capsys: pytest.CaptureFixture[str]) -> Callable[..., Figures]:
    """Measure some cells; gives what the host is told."""

    def run(*cells: str, rounds: int = 2) -> Figures:
        assert dom0.main(["--rounds", str(rounds), *cells]) == 0
        figures = Figures()
        for line in capsys.readouterr().out.splitlines():
            figures.take(line)
        assert world.attached == []
        return figures

    return run


def test_disks_take_turns_and_another_one_begins_each_time(
    world: World, measure: Callable[..., Figures]
) -> None:
    figures = measure("randread-qd1/*")
    ours, qdisk, loop = "/dev/xvdg", "/dev/xvdb", "/dev/xvdc"
    assert world.rivals == ["qdisk", "loop"]
    assert world.ran == [ours, qdisk, loop, qdisk, loop, ours, loop, ours, qdisk]
    for disk in ("file", "qdisk", "loop"):
        assert figures.rates("randread-qd1", disk) == [1000.0, 1000.0]
    assert figures.failures == {}


def test_a_store_that_is_not_served_says_so_and_its_rival_rests(
    world: World, measure: Callable[..., Figures]
) -> None:
    world.refused = {OURS["memory"][1]}
    figures = measure("randread-qd32/memory/brd", "randread-qd32/file/loop", "syscalls/memory")
    assert figures.failures == {"memory": f"{OURS['memory'][1]} is not served: no such store"}
    assert "/dev/xvdd" not in world.ran
    assert figures.rates("randread-qd32", "file") == [1000.0, 1000.0]


@pytest.mark.parametrize(("device", "name"), [("/dev/xvdg", "file"), ("/dev/xvdb", "qdisk")])
def test_a_disk_that_fails_is_left_alone_and_the_others_go_on(
    world: World, measure: Callable[..., Figures], device: str, name: str
) -> None:
    world.broken = {device}
    figures = measure("randread-qd32/file/*")
    assert figures.failures == {name: "randread-qd32 failed: I/O error"}
    assert world.ran.count(device) == 1
    assert figures.rates("randread-qd32", "loop") == [1000.0, 1000.0]


def test_notifications_are_counted_around_our_own_runs(
    world: World, measure: Callable[..., Figures]
) -> None:
    figures = measure("notifications", "randread-qd32/file/qdisk", rounds=3)
    assert figures.costs == {"notifications": [0.03, 0.03, 0.03]}


def test_costs_at_rest(world: World, measure: Callable[..., Figures]) -> None:
    figures = measure("wakeups", "resident")
    assert figures.costs == {"wakeups": [10 / IDLE_SECONDS], "resident": [1.0]}
    assert world.ran == []


def test_bytecodes_are_those_of_a_daemon_that_counts(
    world: World, measure: Callable[..., Figures]
) -> None:
    figures = measure("bytecodes")
    assert figures.costs == {"bytecodes": [1.0, 1.0]}
    (environment,) = world.environments
    assert (Path(environment["PYTHONPATH"]) / "sitecustomize.py").exists()
    assert Path(environment["XENVM_COUNTS"]).is_dir()
    # The first run warmed up.
    assert len(world.ran) == 3


def test_what_cannot_be_counted_says_why(
    world: World, measure: Callable[..., Figures], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise CommandError("nobody counts")

    monkeypatch.setattr(costs, "bytecodes", refuse)
    figures = measure("bytecodes", "wakeups")
    assert figures.failures == {"bytecodes": "nobody counts"}
    assert list(figures.costs) == ["wakeups"]


def test_the_ring_s_loop_needs_no_disk(
    world: World, measure: Callable[..., Figures], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_loop, "ratio", lambda _: 1.25)
    assert measure("ring-loop").costs == {"ring-loop": [1.25]}
    assert world.environments == []


def test_the_ring_s_loop_is_compiled_and_compared(tmp_path: Path) -> None:
    assert 0.2 < ring_loop.ratio(tmp_path) < 20
