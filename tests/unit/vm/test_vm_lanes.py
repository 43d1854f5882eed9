# SPDX-License-Identifier: MIT
"""`xenvm test` from below: which tests go where, and that nothing bad counts as good."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from xenpy.vm import lanes
from xenpy.vm.bench.report import Figures, Result, Sample, judge
from xenpy.vm.bench.run import BENCHMARKS, Benchmark
from xenpy.vm.bench.table import Cell
from xenpy.vm.cache import Cache
from xenpy.vm.context import Context
from xenpy.vm.errors import UsageError, VmDiedError, VmError
from xenpy.vm.lanes import Counts, Runner, lanes_at_a_time, read_junit
from xenpy.vm.qemu import Machine
from xenpy.vm.selection import Selection

ALL = Selection("", (), ())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("unit", "xen", "xenstore", "vm"):
        directory = tmp_path / "tests" / name
        directory.mkdir(parents=True)
        (directory / "test_a.py").touch()
    return tmp_path


def selected(root: Path, *words: str, fast: bool = False, everything: bool = False) -> Selection:
    return Selection.of(words, fast=fast, everything=everything, root=root)


def test_without_paths_every_lane_runs(root: Path) -> None:
    assert selected(root, "-x").below("tests/unit", "tests/abi") == ["tests/unit", "tests/abi"]
    assert selected(root, "tests").below("tests/xen") == ["tests/xen"]


def test_paths_choose_the_lanes(root: Path) -> None:
    chosen = selected(root, "tests/xen/test_a.py::test_b[x-y]", "./tests/vm/", "tests/xenstore")
    assert chosen.below("tests/xen") == ["tests/xen/test_a.py::test_b[x-y]"]
    assert chosen.below("tests/vm") == ["tests/vm"]
    assert chosen.below("tests/unit", "tests/abi") == []


def test_an_absolute_path_is_one_of_the_checkout(root: Path) -> None:
    assert selected(root, f"{root}/tests/xen").below("tests/xen") == ["tests/xen"]
    with pytest.raises(UsageError, match="no such tests: /etc"):
        selected(root, "/etc")


def test_words_after_options_are_no_paths(root: Path) -> None:
    chosen = selected(root, "-k", "tests or xen", "-x", "--tb=short", "--maxfail", "2")
    assert chosen.paths == ()
    assert chosen.options == ("-k", "tests or xen", "-x", "--tb=short", "--maxfail", "2")


@pytest.mark.parametrize(
    ("options", "marks"),
    [
        ({}, "(not long)"),
        ({"fast": True}, "(not slow and not long)"),
        ({"everything": True}, ""),
    ],
)
def test_marks(root: Path, options: dict[str, bool], marks: str) -> None:
    assert selected(root, **options).marks == marks


def test_own_marks_narrow_and_never_widen(root: Path) -> None:
    chosen = selected(root, "-m", "oxenstored_too or long")
    assert chosen.marks == "(not long) and (oxenstored_too or long)"
    words = chosen.pytest(["tests/xen"], "/j.xml", "oxenstored_too")
    assert words.count("-m") == 1
    assert words[words.index("-m") + 1].endswith("and (oxenstored_too)")
    assert words[-1] == "tests/xen"


@pytest.mark.parametrize(
    ("words", "marks", "narrowed"),
    [
        (("-m", "smp"), "(not long) and (smp)", True),
        (("-msmp",), "(not long) and (smp)", True),
        (("-m=smp",), "(not long) and (smp)", True),
        (("-k", "ring"), "(not long)", True),
        (("-kring",), "(not long)", True),
        (("--maxfail=1", "-x", "--keep"), "(not long)", False),
    ],
)
def test_whether_the_user_narrows(
    root: Path, words: tuple[str, ...], marks: str, narrowed: bool
) -> None:
    chosen = selected(root, *words)
    assert (chosen.marks, chosen.narrowed) == (marks, narrowed)


def test_junit_counts() -> None:
    text = (
        '<testsuites><testsuite tests="9" failures="2" errors="1" skipped="2"/>'
        '<testsuite tests="1" failures="0" errors="0" skipped="0"/></testsuites>'
    )
    counts = read_junit(text)
    assert (counts.passed, counts.failed, counts.skipped) == (5, 3, 2)


@pytest.mark.parametrize(
    ("counts", "good"),
    [
        (Counts(passed=1), True),
        (Counts(), False),
        (Counts(passed=9, failed=1), False),
        (Counts(passed=9, skipped=1), False),
        (Counts(passed=9, notes=["a lane died"]), False),
    ],
)
def test_only_all_passed_is_good(counts: Counts, good: bool) -> None:
    assert counts.good is good


@pytest.mark.parametrize(
    ("of_host", "of_machine", "mebibytes", "lanes"),
    [(1, 1, 64000, 1), (2, 1, 64000, 2), (2, 2, 64000, 1), (3, 2, 64000, 1), (4, 2, 64000, 2),
     (8, 1, 6000, 2), (8, 1, 1000, 1)],
)  # fmt: skip
def test_lanes_at_a_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of_host: int,
    of_machine: int,
    mebibytes: int,
    lanes: int,
) -> None:
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(of_host)))
    meminfo.write_text(f"MemTotal: 1 kB\nMemAvailable:   {mebibytes * 1024} kB\n")
    assert lanes_at_a_time(of_machine, meminfo) == lanes


# The lane on the host, with a pytest of its own below it.

TESTS = {
    "good": "def test_a(): pass\ndef test_b(): pass\n",
    "bad": "def test_a(): pass\ndef test_b(): assert 0\n",
    "skips": "import pytest\ndef test_a(): pytest.skip('no')\ndef test_b(): pass\n",
    "broken": "import no_such_module\n",
    "dies": "import os\ndef test_a(): os._exit(0)\n",
    "killed": "import os\ndef test_a(): os.kill(os.getpid(), 9)\n",
    "hangs": "import time\ndef test_a(): time.sleep(60)\n",
    "empty": "",
}


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    # The plugins are most of the time that the pytest below takes, and none is needed.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    tree = tmp_path / "tree"
    (tree / "tests").mkdir(parents=True)
    for name, text in TESTS.items():
        directory = tree / "tests" / name
        directory.mkdir()
        (directory / f"test_{name}.py").write_text(text)
    runner = Runner(Context(cache=Cache(tmp_path / "cache")), ALL, 30.0)
    runner.python, runner.tree = Path(sys.executable), tree
    return runner


@pytest.mark.parametrize(
    ("name", "passed", "failed", "skipped", "note"),
    [
        ("good", 2, 0, 0, ""),
        ("bad", 1, 1, 0, ""),
        ("skips", 1, 0, 1, ""),
        ("broken", 0, 1, 0, ""),
        ("dies", 0, 0, 0, "ended with status 0 and left no results"),
        ("killed", 0, 0, 0, "ended with status -9 and left no results"),
        ("empty", 0, 0, 0, "pytest ended with status 5"),
    ],
)
def test_the_host_lane(
    runner: Runner,
    capfd: pytest.CaptureFixture[str],
    name: str,
    passed: int,
    failed: int,
    skipped: int,
    note: str,
) -> None:
    counts = runner.on_host("host", [f"tests/{name}"])
    assert (counts.passed, counts.failed, counts.skipped) == (passed, failed, skipped)
    assert [note in one for one in counts.notes] == ([True] if note else [])
    assert counts.good is (name == "good")
    printed = capfd.readouterr().out.splitlines()
    assert all(line.startswith("host: ") for line in printed)


@pytest.mark.parametrize("words", [["-m", "smp"], ["-k", "ring"], ["-kring"]])
def test_who_narrows_the_choice_may_leave_a_lane_empty(
    runner: Runner, root: Path, words: list[str]
) -> None:
    runner.selection = selected(root, *words)
    counts = runner.on_host("host", ["tests/good"])
    assert counts == Counts()
    assert not counts.good, "nothing at all ran"
    assert in_dom0(runner, Dom0(status=5, junit=junit(0))) == Counts()


def test_a_lane_that_never_ends_is_ended(runner: Runner) -> None:
    runner.limit = 1.5
    counts = runner.on_host("host", ["tests/hangs"])
    assert not counts.good
    assert counts.notes == ["host: not finished after 2 s"]


def test_no_tests_directory_no_lane(runner: Runner) -> None:
    counts = runner.on_host("vm", ["tests/vm"])
    assert counts == Counts()


def test_the_host_takes_what_no_other_lane_does(runner: Runner) -> None:
    for name in ("xen", "vm", "conformance"):
        (runner.tree / "tests" / name).mkdir()
    paths = runner.host_paths()
    assert "tests/good" in paths
    assert not {"tests/xen", "tests/vm", "tests/conformance"} & set(paths)


# The lane in a machine, with a stand-in for the machine.


@dataclass
class Dom0:
    """What a session does, as far as the lane uses it."""

    status: int = 0
    junit: str = ""
    death: Exception | None = None
    inputs: list[object] = field(default_factory=list[object])

    def run(self, command: Sequence[str], **streams: Any) -> int:
        self.inputs.append(streams.get("stdin"))
        if command[0] == "test":
            return 0 if self.junit else 1
        self.environment = streams["env"]
        self.command = command
        if self.death is not None:
            raise self.death
        subprocess.run(["echo", "in dom0"], stdout=streams["stdout"], check=True)
        return self.status

    def output(self, command: Sequence[str]) -> str:
        assert command == ["cat", lanes.JUNIT_IN_DOM0]
        return self.junit


@dataclass
class NoMachine(Context):
    """A context whose machines are `dom0`."""

    dom0: Dom0 | None = None

    @contextmanager
    def fresh(self) -> Generator[Any, None, None]:
        yield None, self.dom0


def in_dom0(runner: Runner, dom0: Dom0, *marks: str, lane: str = "") -> Counts:
    context = NoMachine(cache=runner.context.cache, release_name="bookworm", dom0=dom0)
    return runner.in_dom0(cast(Context, context), ["tests/xen"], *marks, lane=lane)


def junit(tests: int, failures: int = 0) -> str:
    return f'<testsuite tests="{tests}" failures="{failures}" errors="0" skipped="0"/>'


def test_results_are_kept(runner: Runner, tmp_path: Path) -> None:
    runner.results = tmp_path / "not" / "yet"
    assert in_dom0(runner, Dom0(status=1, junit=junit(3, failures=1))).failed == 1
    assert not runner.on_host("host", ["tests/bad"]).good
    kept = {path.stem: read_junit(path.read_text()) for path in runner.results.iterdir()}
    assert kept == {"bookworm": Counts(passed=2, failed=1), "host": Counts(passed=1, failed=1)}


def test_the_lane_in_dom0(runner: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    dom0 = Dom0(junit=junit(3))
    assert in_dom0(runner, dom0) == Counts(passed=3)
    assert dom0.environment == {"XENPY_REQUIRE_XEN": "1"}
    assert dom0.command[:3] == ["python3", "-m", "pytest"]
    assert dom0.inputs == [subprocess.DEVNULL, subprocess.DEVNULL]
    assert capfd.readouterr().out == "bookworm: in dom0\n"


@pytest.mark.parametrize(
    ("dom0", "note"),
    [
        (Dom0(death=VmDiedError("QEMU was killed")), "bookworm: QEMU was killed"),
        (Dom0(death=OSError(28, "No space left")), "bookworm: OSError: [Errno 28] No space left"),
        (
            Dom0(death=subprocess.CalledProcessError(1, ["qemu-img"])),
            "bookworm: CalledProcessError: Command '['qemu-img']'",
        ),
        (Dom0(status=1), "bookworm: pytest ended with status 1 and left no results"),
        (Dom0(status=3, junit=junit(3)), "bookworm: pytest ended with status 3"),
        (Dom0(status=5, junit=junit(0)), "bookworm: pytest ended with status 5"),
    ],
)
def test_a_lane_that_went_wrong_is_not_good(runner: Runner, dom0: Dom0, note: str) -> None:
    counts = in_dom0(runner, dom0)
    assert not counts.good
    assert counts.notes[0].startswith(note)


class Master(Dom0):
    """Has its stdout until the machine ends, as ssh's master connection has; never finishes."""

    def run(self, command: Sequence[str], **streams: Any) -> int:
        self.kept = os.dup(streams["stdout"])
        raise VmError("timed out after 30 s")


class MachineWithMaster(NoMachine):
    """A context whose machine ends its master connection."""

    @contextmanager
    def fresh(self) -> Generator[Any, None, None]:
        assert isinstance(self.dom0, Master)
        try:
            yield None, self.dom0
        finally:
            os.close(self.dom0.kept)


def test_a_lane_at_its_limit_does_not_wait_for_its_machine_s_ssh(runner: Runner) -> None:
    dom0 = Master()
    context = MachineWithMaster(cache=runner.context.cache, release_name="trixie", dom0=dom0)
    seen: list[Counts] = []

    def lane() -> None:
        seen.append(runner.in_dom0(cast(Context, context), ["tests/xen"]))

    thread = threading.Thread(target=lane, daemon=True)
    thread.start()
    thread.join(10)
    if thread.is_alive():
        os.close(dom0.kept)
        pytest.fail("it waits for ever")
    assert seen[0].notes[0].startswith("trixie: timed out after 30 s")


def test_a_lane_with_a_name_may_be_empty(runner: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    dom0 = Dom0(junit=junit(2))
    assert in_dom0(runner, dom0, "smp", "not long", lane="smp") == Counts(passed=2)
    assert dom0.command[dom0.command.index("-m", 3) + 1] == "(smp) and (not long)"
    assert capfd.readouterr().out == "smp: in dom0\n"
    # Tests may be chosen so that none of them is marked.
    assert in_dom0(runner, Dom0(status=5, junit=junit(0)), "smp", lane="smp") == Counts()


EVERYWHERE = [
    ("smp", 2, "xenstored", ("smp",)),
    ("long", 1, "xenstored", ("not smp", "long")),
    ("oxenstored", 1, "oxenstored", ("oxenstored_too", "not long")),
    ("systemd", 1, "xenstored", ()),
    ("trixie", 1, "xenstored", ("not smp", "not long")),
    ("bookworm", 1, "xenstored", ("not smp", "not long")),
]
ON_TWO_CPUS = [
    ("long", 2, "xenstored", ("long",)),
    ("oxenstored", 2, "oxenstored", ("oxenstored_too", "not long")),
    ("systemd", 2, "xenstored", ()),
    ("trixie", 2, "xenstored", ("not long",)),
    ("bookworm", 2, "xenstored", ("not long",)),
]


@pytest.mark.parametrize(
    ("release", "cpus", "expected"),
    [
        (None, 1, EVERYWHERE),
        (None, 2, ON_TWO_CPUS),
        (
            "bookworm",
            1,
            [
                ("long", 1, "xenstored", ("not smp", "long")),
                ("bookworm", 1, "xenstored", ("not smp", "not long")),
            ],
        ),
    ],
)
def test_which_machines_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str | None, cpus: int,
    expected: list[Any],
) -> None:  # fmt: skip
    """What takes long runs on one release; what needs two CPUs where there are two."""
    seen: list[tuple[str, int, str, tuple[str, ...]]] = []

    def in_dom0(
        _: Runner, context: Context, paths: list[str], *marks: str, lane: str = ""
    ) -> Counts:
        machine = context.machine
        seen.append((lane or context.release.name, machine.cpus, machine.store, marks))
        return Counts()

    for name in ("prepare", "on_host", "gates"):
        monkeypatch.setattr(Runner, name, lambda *_, **__: Counts())
    monkeypatch.setattr(Runner, "host_paths", lambda _: ["tests/unit"])
    monkeypatch.setattr(Runner, "in_dom0", in_dom0)
    monkeypatch.setattr(Context, "prepare", lambda _: None)
    arguments = argparse.Namespace(
        all=True, fast=False, release=release, jobs=1, junit=None, command=[]
    )
    lanes._run_lanes(Context(Cache(tmp_path), machine=Machine(cpus=cpus)), arguments, ALL)
    assert seen == expected


# The benchmark's gates, with a stand-in for what is measured.


@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize(
    ("name", "one"),
    [("block", "randread-qd32/file/qdisk"), ("streams", "stream/blocking/libxenvchan")],
)
def test_a_gate_counts_as_a_test(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, one: str, reached: bool,
) -> None:  # fmt: skip
    figures = Figures()
    gates = [cell for cell in BENCHMARKS[name].cells if cell.gate is not None]
    for cell in gates:
        figures.costs[cell.name] = [0.0]
        for disk, rate in ((cell.ours, 100.0 if reached else 0.1), (cell.rival, 1.0)):
            figures.samples.append(Sample(cell.job, disk, 1, rate))
    machines: list[Machine] = []

    def measure(
        context: Context, benchmark: Benchmark, cells: Sequence[Cell], rounds: int
    ) -> list[Result]:
        machines.append(context.machine)
        assert rounds >= 3
        assert list(cells) == gates
        return judge(cells, figures)

    monkeypatch.setattr(lanes.bench, "measure", measure)
    counts = runner.gates(name)
    races = len([cell for cell in gates if cell.rival])
    assert machines[0].icount
    assert counts.failed == (0 if reached else races)
    assert counts.passed + counts.failed == len(gates)
    assert counts.good is reached
    assert any(one in note for note in counts.notes) is not reached
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) > len(gates)
    assert all(line.startswith("bench: ") for line in printed)


@pytest.mark.parametrize(
    ("everything", "words", "measured"), [(True, [], 2), (True, ["-x"], 0), (False, [], 0)]
)
def test_the_gates_are_for_all_that_nothing_narrows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    everything: bool,
    words: list[str],
    measured: int,
) -> None:
    ran: list[str] = []

    def lane(name: str) -> Callable[..., Any]:
        def run(*_: Any, **__: Any) -> Counts:
            ran.append(name)
            return Counts()

        return run

    for name in ("prepare", "on_host", "in_dom0", "gates"):
        monkeypatch.setattr(Runner, name, lane(name))
    monkeypatch.setattr(Runner, "host_paths", lambda _: ["tests/unit"])
    monkeypatch.setattr(Context, "prepare", lane("image"))
    arguments = argparse.Namespace(
        all=everything, fast=False, release="trixie", jobs=1, junit=None, command=words
    )
    lanes._run_lanes(Context(cache=Cache(tmp_path)), arguments, ALL)
    assert ran.count("in_dom0") == (2 if everything else 1)
    assert ran.count("gates") == measured
    assert ran[-1] == ("gates" if measured else "in_dom0")


def test_no_process_has_the_tests_of_the_harness_and_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the two has a conftest of its own, and a process knows one module of that name."""
    seen: list[tuple[str, list[str], tuple[str, ...]]] = []

    def on_host(_: Runner, lane: str, paths: list[str], *marks: str) -> Counts:
        seen.append((lane, paths, marks))
        return Counts()

    for name in ("prepare", "in_dom0", "gates"):
        monkeypatch.setattr(Runner, name, lambda *_, **__: Counts())
    monkeypatch.setattr(Runner, "host_paths", lambda _: ["tests/unit", "tests/engine"])
    monkeypatch.setattr(Runner, "on_host", on_host)
    monkeypatch.setattr(Context, "prepare", lambda _: None)
    arguments = argparse.Namespace(
        all=True, fast=False, release=None, jobs=1, junit=None, command=[]
    )
    lanes._run_lanes(Context(Cache(tmp_path)), arguments, ALL)
    assert seen == [
        ("alone", ["tests/unit", "tests/engine"], ("alone",)),
        ("alone-vm", ["tests/vm"], ("alone",)),
        ("host", ["tests/unit", "tests/engine"], ("not alone",)),
        ("vm", ["tests/vm"], ("not alone",)),
    ]
