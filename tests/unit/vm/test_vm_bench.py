# SPDX-License-Identifier: MIT
"""The benchmark without a machine: its cells, fio's words, what is made of the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xenpy.vm.bench import costs, fio, report, streams_table, table
from xenpy.vm.bench import run as verb
from xenpy.vm.bench.disks import MAKERS
from xenpy.vm.bench.report import Figures, Result, judge, missed
from xenpy.vm.bench.table import CELLS, JOBS, OURS, RIVALS, Cell, chosen, rows
from xenpy.vm.context import Context
from xenpy.vm.disk import CommandError
from xenpy.vm.qemu import Machine

RACE = Cell("race", "file", 0.8, 1.2, "randread-qd32", "qdisk")
COST = Cell("cost", "file", 1, 0, unit="wake-ups/s")


def test_streams_take_turns() -> None:
    cells = streams_table.CELLS
    assert len({cell.name for cell in cells}) == len(cells)
    assert rows(cells) == {
        "stream": [
            "blocking",
            "libxenvchan",
            "netback",
            "asyncio",
            "bytes",
            "requests",
            "xenstore",
        ],
        "wide-stream": ["blocking", "libxenvchan", "netback", "asyncio"],
        "ping": [
            "blocking",
            "libxenvchan",
            "asyncio",
            "netback",
            "bytes",
            "requests",
            "xenstore",
        ],
        "console": ["xenpy", "xenconsoled"],
    }
    assert [cell.name for cell in chosen(["console/*"], cells)] == ["console/xenpy/xenconsoled"]


def test_every_cell_is_about_something_that_exists() -> None:
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        assert cell.ours in OURS
        assert not cell.rival or cell.rival in RIVALS
        assert not cell.job or cell.job in JOBS
        assert not cell.rival or cell.job
    vdevs = [vdev for vdev, _ in (*OURS.values(), *RIVALS.values())]
    assert len(set(vdevs)) == len(vdevs)
    assert set(MAKERS) == set(RIVALS)


def test_a_goal_is_no_easier_than_its_gate() -> None:
    for cell in CELLS:
        assert cell.goal is not None
        assert cell.gate is None or cell.reaches(cell.goal, cell.gate)


def test_cells_are_chosen_as_a_shell_chooses_files() -> None:
    assert chosen([]) == list(CELLS)
    assert [cell.name for cell in chosen(["syscalls/*", "wakeups"])] == [
        "syscalls/memory", "syscalls/file", "wakeups",
    ]  # fmt: skip
    assert chosen(["nothing"]) == []
    for cell in CELLS:
        assert chosen([cell.name]) == [cell]


def test_a_disk_runs_a_job_once_a_round_however_many_cells_look_at_it() -> None:
    plan = rows(CELLS)
    assert set(plan) == set(JOBS)
    for disks in plan.values():
        assert len(set(disks)) == len(disks)
    assert rows(chosen(["randread-qd1/*"])) == {"randread-qd1": ["file", "qdisk", "loop"]}
    assert rows(chosen(["notifications"])) == {"randread-qd32": ["file"]}
    assert rows(chosen(["syscalls/*", "bytecodes", "wakeups", "resident"])) == {}


# fio

SAID = {
    "jobs": [
        {
            "error": 0,
            "read": {"total_ios": 1500, "runtime": 1001},
            "write": {"total_ios": 0, "runtime": 0},
        }
    ]
}


def test_what_fio_says() -> None:
    run = fio.parse(f"fio: a remark\n{json.dumps(SAID)}")
    assert run == fio.Run(1500, 1_001_000_000)
    assert run.rate == pytest.approx(1498.5, abs=0.01)


@pytest.mark.parametrize(
    ("side", "change", "why"),
    [
        ("read", {"total_ios": 0}, "did nothing"),
        ("read", {"runtime": 0}, "did nothing"),
        ("read", {"total_ios": "many"}, "no figures"),
        ("", {"error": 5}, "errno 5"),
    ],
)
def test_what_is_no_result(side: str, change: dict[str, object], why: str) -> None:
    said = json.loads(json.dumps(SAID))
    job = said["jobs"][0]
    (job[side] if side else job).update(change)
    with pytest.raises(fio.FioError, match=why):
        fio.parse(json.dumps(said))


@pytest.mark.parametrize(
    "said", ["", "fio: cannot open /dev/xvdb", "{", "[]", '{"jobs": []}', "{}"]
)
def test_what_fio_did_not_say(said: str) -> None:
    with pytest.raises(fio.FioError, match="no figures"):
        fio.parse(said)


def test_fio_s_command() -> None:
    words = fio.command(JOBS["write-flush-qd1"], "/dev/xvdb")
    assert {"--filename=/dev/xvdb", "--rw=randwrite", "--iodepth=1", "--fsync=1"} <= set(words)
    words = fio.command(JOBS["read64k-qd8"], "/dev/xvdb")
    assert {"--rw=read", "--bs=65536", "--iodepth=8", "--direct=1"} <= set(words)
    assert not any(word.startswith("--fsync") for word in words)


# The report


def figures(**rates: list[float]) -> Figures:
    """Rounds on each disk, behind a warm-up that must not count."""
    found = Figures()
    for disk, values in rates.items():
        for number, rate in enumerate([1e9, *values]):
            found.take(
                json.dumps(
                    {"what": "sample", "job": RACE.job, "disk": disk, "round": number, "rate": rate}
                )
            )
    return found


def result(cell: Cell, found: Figures) -> Result:
    (one,) = judge([cell], found)
    return one


def test_our_median_against_their_best() -> None:
    one = result(RACE, figures(file=[100.0, 300.0, 110.0], qdisk=[100.0, 90.0, 50.0]))
    assert (one.ours, one.theirs, one.ratio) == (110.0, 100.0, pytest.approx(1.1))
    assert one.rounds == 3
    assert one.spread == pytest.approx(200 / 110)
    assert one.spread_theirs == pytest.approx(50 / 90)
    assert one.instructions == round(1e9 / 110 / 2)
    assert one.verdict == "gate"


@pytest.mark.parametrize(
    ("rate", "verdict"), [(120.0, "goal"), (119.0, "gate"), (80.0, "gate"), (79.9, "MISSED")]
)
def test_a_race_is_won_from_above(rate: float, verdict: str) -> None:
    assert result(RACE, figures(file=[rate], qdisk=[100.0])).verdict == verdict


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.0, "goal"), (0.1, "gate"), (1.0, "gate"), (1.1, "MISSED")]
)
def test_a_cost_is_held_from_below(value: float, verdict: str) -> None:
    found = Figures()
    found.take(json.dumps({"what": "cost", "name": "cost", "value": value}))
    one = result(COST, found)
    assert (one.ours, one.theirs, one.ratio, one.instructions) == (value, None, None, None)
    assert one.verdict == verdict


def test_what_has_no_goal_is_known() -> None:
    cell = Cell("slow", "bytes", None, None, "ping", "netback")
    found = Figures()
    assert (result(cell, found).verdict, missed([result(cell, found)])) == ("unmeasured", [])
    for way in ("bytes", "netback"):
        line = {"what": "sample", "job": "ping", "disk": way, "round": 1, "rate": 5.0}
        found.take(json.dumps(line))
    assert result(cell, found).verdict == "known"
    assert report.text([result(cell, found)]).split("\n")[1].split()[4:7] == ["-", "-", "known"]


def test_what_has_no_gate_is_not_missed() -> None:
    cell = Cell("slow", "file", None, 4, RACE.job, "qdisk", wall=True)
    one = result(cell, figures(file=[100.0], qdisk=[100.0]))
    assert (one.verdict, one.instructions) == ("below goal", None)
    assert missed([one]) == []


@pytest.mark.parametrize(
    ("failures", "why"),
    [
        ({"file": "not served: no such store"}, "not served: no such store"),
        ({"qdisk": "no QEMU"}, "not measured"),
        ({"race": "the daemon died"}, "the daemon died"),
        ({"": "the machine died"}, "the machine died"),
        ({}, "not measured"),
    ],
)
def test_what_was_not_measured_is_missed_and_says_why(failures: dict[str, str], why: str) -> None:
    found = figures(qdisk=[100.0])
    for name, text in failures.items():
        found.take(json.dumps({"what": "failure", "name": name, "why": text}))
    one = result(RACE, found)
    assert (one.verdict, one.why, one.ratio) == ("MISSED", why, None)
    assert missed([one]) == ["race"]
    assert f"race: {why}" in report.text([one]).splitlines()


def test_a_rival_that_is_missing_is_named() -> None:
    found = figures(file=[100.0])
    found.failures["qdisk"] = "no QEMU"
    assert result(RACE, found).why == "no QEMU"


def test_the_first_reason_counts() -> None:
    found = Figures()
    for why in ("first", "second"):
        found.take(json.dumps({"what": "failure", "name": "file", "why": why}))
    assert found.failures == {"file": "first"}


def test_steps_are_for_the_user_and_other_lines_are_refused() -> None:
    found = Figures()
    assert found.take('{"what": "step", "text": "round 1"}') == "round 1"
    for line in ("text", '{"what": "else"}', '{"what": "sample"}', "{}"):
        with pytest.raises((ValueError, KeyError, TypeError)):
            found.take(line)


def test_the_table_has_a_line_for_each_cell_and_so_has_the_json() -> None:
    results = judge(CELLS, Figures())
    lines = report.text(results).splitlines()
    assert lines[0].split()[:4] == ["cell", "ours", "theirs", "ratio"]
    for cell, line in zip(CELLS, lines[1:], strict=False):
        assert line.startswith(cell.name)
    content = json.loads(report.as_json(results, release="trixie"))
    assert content["release"] == "trixie"
    assert [one["name"] for one in content["cells"]] == [cell.name for cell in CELLS]
    assert content["missed"] == [cell.name for cell in CELLS if cell.gate is not None]


# The verb


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Machine, list[str], int]]:
    """What would have been measured; nothing has been found."""
    asked: list[tuple[Machine, list[str], int]] = []

    def measure(
        context: Context, benchmark: verb.Benchmark, cells: list[Cell], rounds: int
    ) -> Figures:
        asked.append((context.machine, [cell.name for cell in cells], rounds))
        return Figures()

    monkeypatch.setattr(verb, "_measured", measure)
    return asked


def xenvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    from xenpy.vm import cli

    monkeypatch.setenv("XENVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cli, "end_on_signals", lambda: None)
    return cli.main(["bench", "block", *words])


def test_a_missed_gate_is_named_and_only_check_makes_it_a_failure(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    measured: list[tuple[Machine, list[str], int]],
) -> None:
    words = ("--cells", "wakeups", "--rounds", "5")
    assert xenvm(tmp_path, monkeypatch, *words) == 0
    assert capsys.readouterr().err == ""
    assert xenvm(tmp_path, monkeypatch, "--check", *words) == 1
    assert "gates missed: wakeups" in capsys.readouterr().err
    machine, names, rounds = measured[0]
    assert (names, rounds) == (["wakeups"], 5)
    assert machine.icount
    assert "dom0_max_vcpus=1" in machine.xen_command_line()


def test_the_wall_s_clock_has_a_machine_and_rounds_of_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured: list[tuple[Machine, list[str], int]],
) -> None:
    words = ("--cells", "wa*", "--json", str(tmp_path / "table.json"), "--check")
    assert xenvm(tmp_path, monkeypatch, *words) == 1
    asked = [(machine.icount, names, rounds) for machine, names, rounds in measured]
    assert asked == [(True, ["wakeups"], 3), (False, ["wall-clock"], table.WALL_ROUNDS)]
    content = json.loads((tmp_path / "table.json").read_text())
    assert [one["name"] for one in content["cells"]] == ["wakeups", "wall-clock"]
    assert content["missed"] == ["wakeups"]


# What the kernel counts


def process(proc: Path, pid: int, *children: int, thread: int = 0) -> Path:
    task = proc / f"{pid}/task/{thread or pid}"
    task.mkdir(parents=True)
    (task / "children").write_text("".join(f"{child} " for child in children))
    (task / "status").write_text("Threads:\t1\nvoluntary_ctxt_switches:\t4\nnonvoluntary: 9\n")
    return proc / str(pid)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Process 10 with a second thread, whose child is 11, whose child is 12; 13 is a stranger."""
    monkeypatch.setattr(costs, "PROC", tmp_path)
    for pid, children in ((10, ()), (11, (12,)), (12, ()), (13, ())):
        process(tmp_path, pid, *children)
        (tmp_path / f"{pid}/smaps_rollup").write_text(
            "0-1 [rollup]\nRss:  900 kB\nPrivate_Clean:  3 kB\nPrivate_Dirty:  1 kB\n"
        )
        (tmp_path / f"{pid}/exe").symlink_to("/usr/bin/python3.13")
    process(tmp_path, 10, 11, thread=100)
    return tmp_path


def test_a_daemon_is_its_whole_family(proc: Path) -> None:
    assert costs.family(10) == [10, 11, 12]
    assert costs.sleeps(10) == 4 * 4
    assert costs.private_bytes(10) == 3 * 4096


def test_the_family_s_system_calls_are_counted_and_no_others(
    proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "SYS_ENTER", tmp_path)
    rows = [(10, 1), (100, 20), (12, 300), (13, 4000)]
    (tmp_path / "hist").write_text(
        "# event histogram\n"
        + "".join(f"{{ common_pid: {pid:10} }} hitcount: {count:10}\n" for pid, count in rows)
    )
    with costs.traced_syscalls(10) as counted:
        assert (tmp_path / "trigger").read_text() == "hist:keys=common_pid"
    assert counted.count == 321
    assert (tmp_path / "trigger").read_text() == "!hist:keys=common_pid"


def test_a_python_of_the_family_that_is_not_counted_is_noticed(proc: Path, tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()
    for pid in (10, 11, 12):
        (counts / str(pid)).write_bytes((pid).to_bytes(8, sys.byteorder) + bytes(8))
    assert costs.bytecodes(10, counts) == 33
    (counts / "12").unlink()
    with pytest.raises(CommandError, match="process 12"):
        costs.bytecodes(10, counts)
    (proc / "12/exe").unlink()
    (proc / "12/exe").symlink_to("/usr/libexec/xenpy-worker")
    assert costs.bytecodes(10, counts) == 21


COUNTED = """
import os, threading

def executed():
    with open(os.path.join(os.environ["XENVM_COUNTS"], str(os.getpid())), "rb") as file:
        return sum(memoryview(file.read()).cast("Q"))

def turns(count):
    for _ in range(count):
        pass

def waits():
    go.wait()
    turns(1000)

go = threading.Event()
thread = threading.Thread(target=waits)
thread.start()
first = executed()
turns(1000)
second = executed()
go.set()
thread.join()
print(second - first, executed() - second)
"""


def test_bytecodes_are_counted_in_every_thread(tmp_path: Path) -> None:
    directory = Path(table.__file__).parents[1] / "data/counted"
    done = subprocess.run(
        [sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(directory), "XENVM_COUNTS": str(tmp_path)},
    )  # fmt: skip
    ours, thread_s = (int(word) for word in done.stdout.split())
    assert 2000 <= ours < 20_000
    assert 2000 <= thread_s < 20_000
