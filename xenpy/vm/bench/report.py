# SPDX-License-Identifier: MIT
"""From what a run said to the table: medians, ratios, verdicts.  Pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

from xenpy.vm.bench.table import Cell

__all__ = [
    "NANOSECONDS_PER_INSTRUCTION", "Figures", "Result", "Sample", "as_json", "judge", "missed",
    "text",
]  # fmt: skip

NANOSECONDS_PER_INSTRUCTION = 2
"""QEMU's `-icount shift=1`: the machine's clock advances by 2 ns with each instruction."""


@dataclass(frozen=True)
class Sample:
    """One run of one job on one disk, in operations per second; round 0 warmed up."""

    job: str
    disk: str
    round: int
    rate: float


@dataclass
class Figures:
    """What one machine has said.

    Attributes:
        costs: what was found of each cell without a rival, once per round.
        failures: why there is nothing of a disk or a cell.
    """

    samples: list[Sample] = field(default_factory=list[Sample])
    costs: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    failures: dict[str, str] = field(default_factory=dict[str, str])

    def take(self, line: str) -> str | None:
        """Take one line of JSON in.  Returns what to tell the user, None if nothing.

        Raises:
            ValueError, KeyError: it is not one of ours.
        """
        said = json.loads(line)
        match said.pop("what"):
            case "sample":
                self.samples.append(Sample(**said))
            case "cost":
                self.costs.setdefault(said["name"], []).append(float(said["value"]))
            case "failure":
                self.failures.setdefault(said["name"], str(said["why"]))
            case "step":
                return str(said["text"])
            case other:
                raise ValueError(f"a line of an unknown kind: {other!r}")
        return None

    def rates(self, job: str, disk: str) -> list[float]:
        """What counts of one disk at one job: all but the warm-up."""
        return [
            one.rate for one in self.samples if (one.job, one.disk) == (job, disk) and one.round
        ]


@dataclass(frozen=True)
class Result:
    """One cell, measured.

    Attributes:
        ours, theirs: our median and the rival's best round; of a cost, ours is the cost.
        ratio: ours over theirs.
        instructions: of the whole machine per operation of ours, None by the wall's clock.
        spread, spread_theirs: (most - least) / median.
        verdict: "goal", "gate", "below goal" (where there is no gate), "known" (nor a goal),
            "unmeasured" (where there is no gate) or "MISSED".
        why: why there is no figure.
    """

    name: str
    rival: str
    unit: str
    ours: float | None
    theirs: float | None
    ratio: float | None
    gate: float | None
    goal: float | None
    verdict: str
    instructions: int | None
    instructions_theirs: int | None
    rounds: int
    spread: float | None
    spread_theirs: float | None
    why: str


def judge(cells: Iterable[Cell], figures: Figures) -> list[Result]:
    """A result for every cell, whether it was measured or not."""
    return [_judged(cell, figures) for cell in cells]


def _judged(cell: Cell, figures: Figures) -> Result:
    theirs: list[float] = []
    if cell.rival:
        ours = figures.rates(cell.job, cell.ours)
        theirs = figures.rates(cell.job, cell.rival)
        complete = bool(ours and theirs)
    else:
        ours = figures.costs.get(cell.name, [])
        complete = bool(ours)
    middle = statistics.median(ours) if ours else None
    best = max(theirs) if theirs else None
    ratio = middle / best if middle is not None and best is not None else None
    value = ratio if cell.rival else middle
    counted = cell.rival and not cell.wall
    return Result(
        name=cell.name,
        rival=cell.rival,
        unit=cell.unit,
        ours=middle,
        theirs=best,
        ratio=ratio,
        gate=cell.gate,
        goal=cell.goal,
        verdict=_verdict(cell, value),
        instructions=_instructions(middle) if counted else None,
        instructions_theirs=_instructions(best) if counted else None,
        rounds=len(ours),
        spread=_spread(ours),
        spread_theirs=_spread(theirs),
        why="" if complete else _why(cell, figures, missing_ours=not ours),
    )


def _verdict(cell: Cell, value: float | None) -> str:
    if value is None:
        return "unmeasured" if cell.gate is None else "MISSED"
    if cell.goal is None:
        return "known"
    if cell.reaches(value, cell.goal):
        return "goal"
    if cell.gate is None:
        return "below goal"
    return "gate" if cell.reaches(value, cell.gate) else "MISSED"


def _why(cell: Cell, figures: Figures, *, missing_ours: bool) -> str:
    names = [cell.name, cell.ours if missing_ours else cell.rival, ""]
    found = [figures.failures[name] for name in names if name in figures.failures]
    return found[0] if found else "not measured"


def _instructions(rate: float | None) -> int | None:
    return None if rate is None else round(1e9 / rate / NANOSECONDS_PER_INSTRUCTION)


def _spread(values: Sequence[float]) -> float | None:
    if not values or not (middle := statistics.median(values)):
        return None
    return (max(values) - min(values)) / middle


def missed(results: Iterable[Result]) -> list[str]:
    """The names of the cells that did not reach their gates."""
    return [one.name for one in results if one.verdict == "MISSED"]


def as_json(results: Sequence[Result], **facts: str | int) -> str:
    """The whole table for programs."""
    content = {**facts, "missed": missed(results), "cells": [asdict(one) for one in results]}
    return json.dumps(content, indent=1) + "\n"


HEAD = (
    "cell", "ours", "theirs", "ratio", "gate", "goal", "verdict", "instr/op", "theirs", "rounds",
    "spread", "theirs",
)  # fmt: skip


def text(results: Sequence[Result]) -> str:
    """The whole table for people; what was not measured says why in a line below it."""
    lines = [HEAD, *(_line(one) for one in results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    rendered = [
        "  ".join(
            word.ljust(width) if column == 0 else word.rjust(width)
            for column, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    notes = [f"{one.name}: {one.why}" for one in results if one.why]
    return "\n".join([*rendered, *([""] if notes else []), *notes])


def _line(one: Result) -> tuple[str, ...]:
    name = one.name if one.rival else f"{one.name} ({one.unit})"
    least = ">=" if one.rival else "<="
    return (
        name,
        _number(one.ours),
        _number(one.theirs),
        _number(one.ratio),
        "-" if one.gate is None else f"{least} {one.gate:g}",
        "-" if one.goal is None else f"{least} {one.goal:g}",
        one.verdict,
        _number(one.instructions),
        _number(one.instructions_theirs),
        str(one.rounds),
        _percent(one.spread),
        _percent(one.spread_theirs),
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
