# SPDX-License-Identifier: MIT
"""`xenvm test`: which tests run where, and what came of it.

    smp        tests/xen as far as marked `smp`, in the dom0 of a pristine Xen with two CPUs
    alone      what is marked `alone` of the host's tests, under --all, then of the harness's
    long       what is marked `long` of tests/xen, on the first release, under --all
    host       the rest of what needs no Xen: tests/unit, abi, drivers, lint, docs
    oxenstored tests/xen as far as marked `oxenstored_too`, under the other xenstored
    systemd    tests/systemd, in a dom0 that it has booted
    vm         the rest of tests/vm: the harness itself, from outside
    trixie     the rest of tests/xen, one machine of one CPU per release
    bookworm
    bench      the gates of `xenvm bench block` and `bench streams`, under --all

The first two have this host to themselves; the others begin in this order, side by side, one for
each of its CPUs.  The benchmarks may have company: they count instructions.  Results come back as
JUnit files, never from what was printed; --junit keeps them.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree

from xenpy.vm import host, progress, venv
from xenpy.vm.bench import run as bench
from xenpy.vm.bench.report import missed, text
from xenpy.vm.checkout import Checkout
from xenpy.vm.context import Context
from xenpy.vm.errors import VmError
from xenpy.vm.machine import scratch_directory, tied_to_us
from xenpy.vm.releases import DEFAULT, RELEASES
from xenpy.vm.selection import Selection

__all__ = ["HELP", "Counts", "Runner", "lanes_at_a_time", "read_junit", "test"]

HELP = """\
Run the tests; installs, builds and boots whatever they need.

  --fast     after each edit, minutes: the host's tests, and tests/xen on one release,
             without those marked `slow` or `long`
  (default)  what CI runs: everything but `long`, on every release
  --all      everything, what is marked `long` on one release only; and, if no words narrow
             it, the gates of `xenvm bench block` and `bench streams`

Words that are no options of xenvm go to pytest: paths choose which tests run and so where,
-k, -x, -v and the like go everywhere; -m narrows the choice that was made above.  It ends
with one line, `N passed, M failed, K skipped`, and with status 0 only if all of it passed: a
skipped test counts as failed, and so does a machine that dies or never finishes.

examples:
  xenvm test --fast
  xenvm test tests/xen/test_block_protocol.py -x
  xenvm test --release bookworm -k hostile
  xenvm test --all --junit results
"""

NOTHING_COLLECTED = 5
"""pytest's exit status when no test was selected."""
JUNIT_IN_DOM0 = "/run/xenvm/junit.xml"
XEN_TESTS, SYSTEMD_TESTS, VM_TESTS = "tests/xen", "tests/systemd", "tests/vm"
LANE_LIMIT, LONG_LANE_LIMIT = 45 * 60.0, 150 * 60.0
"""Seconds for one lane: pytest's own limits do not help a process that sleeps in the kernel."""
BENCH_ROUNDS = 3
LANE_MEMORY = 2500
"""MiB."""

Lane: TypeAlias = "Callable[[], Counts]"


@dataclass
class Counts:
    """How many tests ended how; `notes` says what else went wrong."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    notes: list[str] = field(default_factory=list[str])

    def add(self, other: Counts) -> None:
        """Sum up."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.notes += other.notes

    @property
    def good(self) -> bool:
        """Everything ran and passed."""
        return self.passed > 0 and not (self.failed or self.skipped or self.notes)


def read_junit(text: str) -> Counts:
    """Count the results in a JUnit file."""
    counts = Counts()
    for suite in ElementTree.fromstring(text).iter("testsuite"):
        bad = int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
        skipped = int(suite.get("skipped", "0"))
        counts.failed += bad
        counts.skipped += skipped
        counts.passed += max(0, int(suite.get("tests", "0")) - bad - skipped)
    return counts


def test(context: Context, arguments: argparse.Namespace) -> int:
    """Run what was asked for.  Returns 0 if all of it ran and passed, else 1."""
    began = time.monotonic()
    selection = Selection.of(arguments.command, fast=arguments.fast, everything=arguments.all)
    more = host.LONG_TEST_PACKAGES if arguments.all else ()
    host.ensure_packages([*host.VM_PACKAGES, *host.TEST_PACKAGES, *more])
    try:
        total = _run_lanes(context, arguments, selection)
    except BaseException:
        # Lanes in other threads end when what they wait for does.
        _kill_children()
        raise
    for note in total.notes:
        print(f"xenvm: {note}", file=sys.stderr)
    if not (total.passed or total.failed or total.notes):
        print("xenvm: not one test was selected", file=sys.stderr)
    seconds = time.monotonic() - began
    print(f"xenvm: the tests took {seconds:.0f} s", file=sys.stderr)
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped", flush=True)
    return 0 if total.good else 1


def _run_lanes(context: Context, arguments: argparse.Namespace, selection: Selection) -> Counts:
    limit = LONG_LANE_LIMIT if arguments.all else LANE_LIMIT
    runner = Runner(context, selection, limit, arguments.junit)
    if arguments.release:
        releases = [arguments.release]
    else:
        releases = [DEFAULT] if arguments.fast else list(RELEASES)
    total = Counts()
    with scratch_directory(context.cache) as directory:
        runner.prepare(directory)
        alone, together = _lanes(runner, arguments, releases)
        for lane in alone:
            total.add(lane())
        pool = ThreadPoolExecutor(arguments.jobs or lanes_at_a_time(context.machine.cpus))
        try:
            for running in [pool.submit(lane) for lane in together]:
                total.add(running.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return total


def _lanes(
    runner: Runner, arguments: argparse.Namespace, releases: Sequence[str]
) -> tuple[Sequence[Lane], Sequence[Lane]]:
    """Those that have this host to themselves, and the others, in the order of the list above."""
    selection, narrowed = runner.selection, arguments.fast or arguments.release
    alone: list[Lane] = []
    long: list[Lane] = []
    whole: list[Lane] = []
    some: list[Lane] = []
    if paths := selection.below(XEN_TESTS):
        contexts = [runner.context.with_release(name) for name in releases]
        for one in contexts:
            one.prepare()
        first = contexts[0]
        one_cpu = first.machine.cpus == 1
        marks = ["not smp"] if one_cpu else []
        whole = [partial(runner.in_dom0, one, paths, *marks, "not long") for one in contexts]
        if arguments.all:
            # What takes long tells the same on each release.
            long = [partial(runner.in_dom0, first, paths, *marks, "long", lane="long")]
        if not narrowed:
            if one_cpu:
                two = replace(first, machine=replace(first.machine, cpus=2))
                alone.append(partial(runner.in_dom0, two, paths, "smp", lane="smp"))
            other = replace(first, machine=replace(first.machine, store="oxenstored"))
            words = ("oxenstored_too", "not long")
            some.append(partial(runner.in_dom0, other, paths, *words, lane="oxenstored"))
    if (paths := selection.below(SYSTEMD_TESTS)) and not (
        arguments.fast or (arguments.release and not selection.paths)
    ):
        plain = runner.context.with_release(releases[0])
        plain.prepare()
        booted = replace(plain, machine=replace(plain.machine, init="systemd"))
        some.append(partial(runner.in_dom0, booted, paths, lane="systemd"))
    harness, here = selection.below(VM_TESTS), runner.host_paths()
    marks = ["not alone"] if arguments.all else []
    if arguments.all:
        # Two of pytest's processes: each of the directories has a conftest of its own.
        alone.append(partial(runner.on_host, "alone", here, "alone"))
        alone.append(partial(runner.on_host, "alone-vm", harness, "alone"))
    if not arguments.fast:
        some.append(partial(runner.on_host, "vm", harness, *marks))
    host_lane = partial(runner.on_host, "host", here, *marks)
    gates: list[Lane] = []
    if arguments.all and not arguments.command:
        gates = [partial(runner.gates, name) for name in bench.BENCHMARKS]
    return alone, [*long, host_lane, *some, *whole, *gates]


def lanes_at_a_time(cpus: int, meminfo: Path = Path("/proc/meminfo")) -> int:
    """How many machines of `cpus` CPUs this host carries: each has 2.5 GiB.

    Each has its CPUs to itself: a virtual CPU that is not running holds the locks that another
    one spins for.
    """
    words = meminfo.read_text().split()
    available = int(words[words.index("MemAvailable:") + 1]) >> 10
    return max(1, min(len(os.sched_getaffinity(0)) // cpus, available // LANE_MEMORY))


def _kill_children() -> None:
    """Kill what our threads wait for: machines, ssh, pytest.  Their own children are tied."""
    for task in Path("/proc/self/task").iterdir():
        # A thread or a child may end before its turn.
        with suppress(FileNotFoundError, ProcessLookupError):
            for word in (task / "children").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(word), signal.SIGKILL)


class Runner:
    """Runs pytest on the host and in machines; prints what it says under the lane's name."""

    def __init__(
        self, context: Context, selection: Selection, limit: float, results: Path | None = None
    ) -> None:
        self.context = context
        self.selection = selection
        self.limit = limit
        self.results = results
        self._print_lock = threading.Lock()
        self.python = Path()
        self.tree = Path()

    def prepare(self, directory: Path) -> None:
        """Make the virtual environment, and a copy of the checkout in `directory`."""
        checkout = Checkout.scan()
        self.python = venv.ensure(self.context.cache, checkout.root)
        self.tree = venv.stage(self.context.cache, checkout, self.python, directory)

    def host_paths(self) -> list[str]:
        """The tests that need no Xen: everything below tests/ that is in no other lane."""
        others = {XEN_TESTS, SYSTEMD_TESTS, VM_TESTS, "tests/conformance"}
        names = sorted(
            f"tests/{entry.name}" for entry in (self.tree / "tests").iterdir() if entry.is_dir()
        )
        return self.selection.below(*(name for name in names if name not in others))

    def on_host(self, lane: str, paths: list[str], *marks: str) -> Counts:
        """Run tests, those that have `marks`, on this machine."""
        paths = [path for path in paths if (self.tree / path.split("::")[0]).exists()]
        if not paths:
            return Counts()
        junit = self.tree.parent / f"{lane}.xml"
        command = [
            os.fspath(self.python), "-m", "pytest", "-p", "no:cacheprovider",
            *self.selection.pytest(paths, os.fspath(junit), *marks),
        ]  # fmt: skip
        environment = {
            **os.environ,
            "PYTHONPATH": os.fspath(self.tree),
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "XENPY_REQUIRE_XEN": "1",
            "XENVM_CACHE": os.fspath(self.context.cache.root),
            "MYPY_CACHE_DIR": os.fspath(self.context.cache.root / "mypy"),
        }
        with progress.step(f"{lane}: tests"), self._printed(lane) as output:
            try:
                code = subprocess.run(
                    tied_to_us(command), cwd=self.tree, env=environment, timeout=self.limit,
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                return Counts(notes=[f"{lane}: not finished after {self.limit:.0f} s"])
        text = junit.read_text() if junit.exists() else ""
        return self._counted(lane, code, text, may_be_empty=bool(marks))

    def in_dom0(self, context: Context, paths: list[str], *marks: str, lane: str = "") -> Counts:
        """Run tests, those that have `marks`, as root in the dom0 of a pristine machine.

        A lane that is named, other than by its release, has some tests only and may have none.
        """
        may_be_empty = bool(lane or self.selection.paths)
        lane = lane or context.release.name
        console = context.cache.directory("log") / f"console-{lane}.log"
        context = replace(context, save_console=console)
        command = ["python3", "-m", "pytest", "-p", "no:cacheprovider"]
        command += self.selection.pytest(paths, JUNIT_IN_DOM0, *marks)
        try:
            # The machine ends first: its ssh keeps what it was given to write to.
            with (
                progress.step(f"{lane}: tests"),
                self._printed(lane) as output,
                context.fresh() as (_, session),
            ):
                code = session.run(
                    command, env={"XENPY_REQUIRE_XEN": "1"}, stdin=subprocess.DEVNULL,
                    stdout=output, stderr=output, timeout=self.limit,
                )  # fmt: skip
                test = ["test", "-e", JUNIT_IN_DOM0]
                have = session.run(test, stdin=subprocess.DEVNULL) == 0
                text = session.output(["cat", JUNIT_IN_DOM0]) if have else ""
        except VmError as error:
            print(error.render(), file=sys.stderr)
            return Counts(notes=[f"{lane}: {error} (its console: {console})"])
        except (OSError, subprocess.SubprocessError) as error:
            return Counts(notes=[f"{lane}: {type(error).__name__}: {error}"])
        return self._counted(lane, code, text, may_be_empty=may_be_empty)

    def gates(self, name: str) -> Counts:
        """Run what has a gate in a benchmark; each is a test.  By instructions: it may share the
        host with other lanes."""
        context = replace(self.context, machine=bench.machine(self.context.machine).with_icount())
        benchmark = bench.BENCHMARKS[name]
        gated = [cell for cell in benchmark.cells if cell.gate is not None]
        with progress.step(f"bench: {name} beside its rivals"):
            results = bench.measure(context, benchmark, gated, BENCH_ROUNDS)
        with self._print_lock:
            print("".join(f"bench: {line}\n" for line in text(results).splitlines()), end="")
        bad = missed(results)
        notes = [f"bench {name}: gates missed: {', '.join(bad)}"] if bad else []
        return Counts(passed=len(gated) - len(bad), failed=len(bad), notes=notes)

    def _counted(self, lane: str, code: int, junit: str, *, may_be_empty: bool = False) -> Counts:
        if code == NOTHING_COLLECTED and (may_be_empty or self.selection.narrowed):
            return Counts()
        if not junit:
            return Counts(notes=[f"{lane}: pytest ended with status {code} and left no results"])
        if self.results is not None:
            self.results.mkdir(parents=True, exist_ok=True)
            (self.results / f"{lane}.xml").write_text(junit)
        counts = read_junit(junit)
        if code and not counts.failed:
            counts.notes.append(f"{lane}: pytest ended with status {code}")
        return counts

    @contextmanager
    def _printed(self, lane: str) -> Generator[int]:
        """A descriptor: what is written to it appears line by line, after the lane's name."""
        reader, writer = os.pipe()

        def copy() -> None:
            with open(reader, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    with self._print_lock:
                        sys.stdout.write(f"{lane}: {line}")
                        sys.stdout.flush()

        thread = threading.Thread(target=copy, name=f"print-{lane}")
        thread.start()
        try:
            yield writer
        finally:
            os.close(writer)
            thread.join()
