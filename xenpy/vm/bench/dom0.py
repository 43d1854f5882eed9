# SPDX-License-Identifier: MIT
"""In dom0: measures the cells that `xenvm bench block` asks for.

What it finds goes to standard output, a line of JSON each (`report.Figures.take`).  A disk
that cannot be had and a cell that cannot be measured are findings too: the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

from xenpy.vm.bench import costs, disks, fio, ring_loop
from xenpy.vm.bench.disks import Daemon, Shell, vdev_of
from xenpy.vm.bench.table import IDLE_SECONDS, JOBS, OURS, RIVALS, WORK, Cell, chosen, rows
from xenpy.vm.disk import CommandError
from xenpy.vm.guest import GuestError

__all__ = ["main"]

IDLE_DISKS = ("xvdp", "xvdq", "xvdr", "xvds")
SETTLED = 2.0
TAPPED_JOB = "randread-qd32"
COUNTED = Path(__file__).parents[1] / "data/counted"
TROUBLE = (CommandError, GuestError, fio.FioError, OSError, ValueError)


def tell(what: str, **said: str | float) -> None:
    """Say one thing to the host."""
    print(json.dumps({"what": what, **said}), flush=True)


def step(text: str) -> None:
    """Say what is done next."""
    tell("step", text=text)


class Bench:
    """The guest with the rivals' disks, and how our own come and go.

    Args:
        shell: in the guest.
        missing: the names of disks that are not there.
    """

    def __init__(self, shell: Shell, missing: Iterable[str]) -> None:
        self.shell = shell
        self.missing = set(missing)

    @contextmanager
    def served(self, names: Iterable[str]) -> Generator[set[str]]:
        """Some of our disks, attached; gives the names of those that are."""
        there: set[str] = set()
        try:
            for name in names:
                vdev, target = OURS[name]
                if name == "file":
                    disks.make_image(Path(target))
                try:
                    disks.attach(self.shell, vdev, target)
                except TROUBLE as error:
                    self.missing.add(name)
                    tell("failure", name=name, why=f"{target} is not served: {error}")
                else:
                    there.add(name)
            yield there
        finally:
            for name in there:
                disks.detach(OURS[name][0])

    def fio(self, job: str, disk: str) -> fio.Run:
        """Run one job on one disk."""
        line = " ".join(fio.command(JOBS[job], f"/dev/{vdev_of(disk)}"))
        return fio.parse(self.shell.run(line))


def race(bench: Bench, daemon: Daemon, cells: Sequence[Cell], rounds: int) -> None:
    """All jobs on all disks in turns, once to warm up and then `rounds` times."""
    # Without ours, there is nothing to compare the rival's with.
    plan = rows(cell for cell in cells if cell.ours not in bench.missing)
    notified = {(cell.job, cell.ours) for cell in cells if cell.name == "notifications"}
    for number in range(rounds + 1):
        for job, names in plan.items():
            # Another one begins in each round: nobody always follows the same.
            start = number % len(names)
            for name in [*names[start:], *names[:start]]:
                if name in bench.missing:
                    continue
                step(f"round {number} of {rounds}: {job} on {name}")
                try:
                    run, sent = _run(bench, daemon, job, name, counted=(job, name) in notified)
                except TROUBLE as error:
                    bench.missing.add(name)
                    tell("failure", name=name, why=f"{job} failed: {error}")
                    continue
                tell("sample", job=job, disk=name, round=number, rate=run.rate)
                if number and sent is not None:
                    tell("cost", name="notifications", value=sent / run.operations)


def _run(
    bench: Bench, daemon: Daemon, job: str, name: str, *, counted: bool
) -> tuple[fio.Run, int | None]:
    """Run one job; with `counted`, also how often the daemon notified the guest meanwhile."""
    if not counted:
        return bench.fio(job, name), None
    before = daemon.counters(vdev_of(name))["notifications"]
    run = bench.fio(job, name)
    return run, daemon.counters(vdev_of(name))["notifications"] - before


def system_calls(bench: Bench, daemon: Daemon, cell: Cell, rounds: int) -> None:
    """System calls per request, once the disk is warm."""
    bench.fio(cell.job, cell.ours)
    for _ in range(rounds):
        with costs.traced_syscalls(daemon.pid) as counted:
            run = bench.fio(cell.job, cell.ours)
        tell("cost", name=cell.name, value=counted.count / run.operations)


def tapped(bench: Bench, daemon: Daemon, names: set[str], rounds: int) -> None:
    """What a tap costs, and what a passive one does not see; beside the same without it."""
    device = daemon.name_of(vdev_of("file"))
    bench.fio(TAPPED_JOB, "file")
    for _ in range(rounds):
        plain = bench.fio(TAPPED_JOB, "file")
        for how, words in (("tap/exact", []), ("tap/passive", ["--passive"])):
            if how not in names and not (words and "tap/loss" in names):
                continue
            with costs.tap(device, *words) as tap:
                run = bench.fio(TAPPED_JOB, "file")
            tell("cost", name=how, value=100 * (plain.rate / run.rate - 1))
            if words:
                tell("cost", name="tap/loss", value=100 * tap.lost / (tap.seen + tap.lost))


def idle(bench: Bench, daemon: Daemon, names: set[str]) -> None:
    """What attached disks cost that nobody uses: wake-ups of one, memory of several more."""
    time.sleep(SETTLED)
    before = costs.sleeps(daemon.pid)
    time.sleep(IDLE_SECONDS)
    if "wakeups" in names:
        woken = costs.sleeps(daemon.pid) - before
        tell("cost", name="wakeups", value=woken / IDLE_SECONDS)
    if "resident" not in names:
        return
    one_disk = costs.private_bytes(daemon.pid)
    attached: list[str] = []
    try:
        for vdev in IDLE_DISKS:
            image = disks.make_image(Path(WORK, f"{vdev}.img"), 8)
            disks.attach(bench.shell, vdev, os.fspath(image))
            attached.append(vdev)
        time.sleep(SETTLED)
        more = costs.private_bytes(daemon.pid) - one_disk
        tell("cost", name="resident", value=more / len(IDLE_DISKS) / 2**20)
    finally:
        for vdev in attached:
            disks.detach(vdev)


def executed(bench: Bench, daemon: Daemon, cell: Cell, counts: Path, rounds: int) -> None:
    """Python bytecodes per request, once the disk is warm."""
    bench.fio(cell.job, cell.ours)
    for _ in range(rounds):
        before = costs.bytecodes(daemon.pid, counts)
        run = bench.fio(cell.job, cell.ours)
        spent = costs.bytecodes(daemon.pid, counts) - before
        tell("cost", name=cell.name, value=spent / run.operations)


@contextmanager
def found_out(cells: Iterable[Cell]) -> Generator[None]:
    """What goes wrong in the block is why there is nothing of these cells."""
    try:
        yield
    except TROUBLE as error:
        for cell in cells:
            tell("failure", name=cell.name, why=str(error))


def measure(bench: Bench, cells: Sequence[Cell], rounds: int) -> None:
    """All of it, on as few daemons as can be."""
    named = {cell.name: cell for cell in cells}
    traced = [cell for cell in cells if cell.name.startswith("syscalls/")]
    racing = [cell for cell in cells if cell.rival or cell.name == "notifications"]
    if racing or traced:
        ours = {cell.ours for cell in (*racing, *traced)}
        with (
            found_out([*racing, *traced]),
            Daemon() as daemon,
            bench.served(name for name in OURS if name in ours) as there,
        ):
            race(bench, daemon, racing, rounds)
            for cell in (cell for cell in traced if cell.ours in there):
                step(cell.name)
                with found_out([cell]):
                    system_calls(bench, daemon, cell, rounds)
    resting = [named[name] for name in ("wakeups", "resident") if name in named]
    if resting:
        step("disks at rest")
        _with_a_file(bench, resting, lambda daemon: idle(bench, daemon, set(named)))
    taps = [cell for cell in cells if cell.name.startswith("tap/")]
    if taps:
        step("a tap")
        names = {cell.name for cell in taps}
        _with_a_file(bench, taps, lambda daemon: tapped(bench, daemon, names, rounds))
    if "ring-loop" in named:
        step("the ring's loop")
        with found_out([named["ring-loop"]]):
            Path(WORK).mkdir(parents=True, exist_ok=True)
            tell("cost", name="ring-loop", value=ring_loop.ratio(Path(WORK)))
    if "bytecodes" in named:
        step("bytecodes")
        counts = Path(WORK, "counts")
        shutil.rmtree(counts, ignore_errors=True)
        counts.mkdir(parents=True)
        cell = named["bytecodes"]
        environment = {"PYTHONPATH": os.fspath(COUNTED), "XENVM_COUNTS": os.fspath(counts)}
        _with_a_file(
            bench, [cell], lambda daemon: executed(bench, daemon, cell, counts, rounds), environment
        )


def _with_a_file(
    bench: Bench,
    cells: Sequence[Cell],
    do: Callable[[Daemon], None],
    environment: dict[str, str] | None = None,
) -> None:
    """Measure with a daemon of our own that serves one file."""
    with found_out(cells), Daemon(environment) as daemon, bench.served(["file"]) as there:
        if there:
            do(daemon)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure.  Returns 0 also when there was nothing to be measured: the host judges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("cells", nargs="+", help="their names")
    arguments = parser.parse_args(argv)
    cells = chosen(arguments.cells)
    rivals = [name for name in RIVALS if any(name == cell.rival for cell in cells)]
    step("the guest and the rivals' disks")
    missing = disks.make_guest(rivals)
    for name, why in missing.items():
        tell("failure", name=name, why=why)
    with Shell() as shell:
        measure(Bench(shell, missing), cells, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
