# SPDX-License-Identifier: MIT
"""`xenvm bench NAME`: starts the machines, shows how far it is, judges."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from xenpy.vm import progress
from xenpy.vm.bench import streams_table, table
from xenpy.vm.bench.report import Figures, Result, as_json, judge, missed, text
from xenpy.vm.bench.table import WALL_ROUNDS, Cell, chosen
from xenpy.vm.context import Context
from xenpy.vm.errors import UsageError, VmError
from xenpy.vm.qemu import Machine

__all__ = ["BENCHMARKS", "Benchmark", "bench", "machine", "measure", "show"]


LIMIT = 3600.0
"""Seconds of the wall's clock for one machine."""


@dataclass(frozen=True)
class Benchmark:
    """What can be measured at one go.

    Attributes:
        cells: the lines of its table.
        module: what measures them, in dom0.
    """

    cells: Sequence[Cell]
    module: str


BENCHMARKS: Mapping[str, Benchmark] = {
    "block": Benchmark(table.CELLS, "xenpy.vm.bench.dom0"),
    "streams": Benchmark(streams_table.CELLS, "xenpy.vm.bench.streams"),
}


def machine(base: Machine) -> Machine:
    """The machine to measure in: dom0 has one vCPU, on a CPU that no guest uses.

    QEMU counts each byte of a `rep stosb` as an instruction.  So dom0 clears no page that it takes:
    one for each wake-up that unmasks a port (evtchn_write) would be 4096.
    """
    pinned = (*base.xen_arguments, "dom0_vcpus_pin")
    quick = (*base.kernel_arguments, "init_on_alloc=0")
    return replace(base, cpus=2, dom0_cpus=1, xen_arguments=pinned, kernel_arguments=quick)


def bench(context: Context, arguments: argparse.Namespace) -> int:
    """Measure what the command line chose.  Returns 1 if a gate was missed and --check given."""
    benchmark = BENCHMARKS[arguments.benchmark]
    patterns: list[str] = arguments.cells
    cells = chosen(patterns, benchmark.cells)
    if not cells:
        names = ", ".join(cell.name for cell in benchmark.cells)
        raise UsageError(f"no cell matches {' '.join(patterns)}", hint=f"there are {names}")
    results = measure(context, benchmark, cells, arguments.rounds)
    content = as_json(results, release=context.release.name, xen=context.release.xen)
    show(text(results) + "\n", content, arguments.json)
    bad = missed(results)
    if arguments.check and bad:
        print(f"xenvm: gates missed: {', '.join(bad)}", file=sys.stderr)
        return 1
    return 0


def measure(
    context: Context, benchmark: Benchmark, cells: Sequence[Cell], rounds: int
) -> list[Result]:
    """A result for each cell; those by the wall's clock come from a machine of their own."""
    counted = [cell for cell in cells if not cell.wall]
    walled = [cell for cell in cells if cell.wall]
    results: list[Result] = []
    if counted:
        results += judge(counted, _measured(context, benchmark, counted, rounds))
    if walled:
        wall = replace(context, machine=replace(context.machine, icount=False))
        results += judge(walled, _measured(wall, benchmark, walled, WALL_ROUNDS))
    return results


def show(shown: str, content: str, where: str | None) -> None:
    """Print the table; with `where`, write the JSON there, or for "-" print that instead."""
    if where == "-":
        shown = content
    elif where is not None:
        Path(where).write_text(content)
    print(shown, end="", flush=True)


def _measured(
    context: Context, benchmark: Benchmark, cells: Sequence[Cell], rounds: int
) -> Figures:
    """What one machine says of the cells; why it could say no more is in the figures too."""
    figures = Figures()
    began = time.monotonic()

    def take(line: str) -> None:
        try:
            said = figures.take(line)
        except (ValueError, KeyError, TypeError):
            said = line.rstrip()  # a program's own words
        if said is not None:
            progress.note(f"bench: {said} ({time.monotonic() - began:.0f} s)")

    command = ["python3", "-m", benchmark.module, "--rounds", str(rounds)]
    command += [cell.name for cell in cells]
    try:
        with context.fresh() as (_, session), _lines(take) as output:
            if code := session.run(command, stdout=output, timeout=LIMIT):
                figures.failures[""] = f"the measurement ended with status {code}"
    except UsageError:
        raise
    except VmError as error:
        print(error.render(), file=sys.stderr)
        figures.failures[""] = str(error)
    return figures


@contextmanager
def _lines(take: Callable[[str], None]) -> Generator[int]:
    """A descriptor: `take` gets each line that is written to it."""
    reader, writer = os.pipe()

    def copy() -> None:
        with open(reader, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                take(line)

    thread = threading.Thread(target=copy, name="bench")
    thread.start()
    try:
        yield writer
    finally:
        os.close(writer)
        thread.join()
