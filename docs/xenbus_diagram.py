# SPDX-License-Identifier: MIT
"""Draws the tables of `xenpy.xenbus`: what docs/design/xenbus.md shows below its marker.

Run after a table has changed, it writes the page anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from xenpy.types import XenbusState as S
from xenpy.xenbus import (
    BACKEND_TABLE,
    FRONTEND_TABLE,
    BackendStep,
    FrontendStep,
    backend_step,
    frontend_step,
)

PAGE: Final = Path(__file__).resolve().parent / "design/xenbus.md"
MARKER: Final = "<!-- below: python3 docs/xenbus_diagram.py -->\n"

Step = BackendStep | FrontendStep

LEADS_TO: Final[dict[Step, S | None]] = {
    BackendStep.PREPARE: S.INIT_WAIT,
    BackendStep.CONNECT: S.CONNECTED,
    BackendStep.FOLLOW_CLOSING: S.CLOSING,
    BackendStep.DISCONNECT: S.CLOSED,
    BackendStep.RESTART: S.INIT_WAIT,
    BackendStep.REPLACE: None,
    BackendStep.REMOVE: None,
    FrontendStep.PUBLISH: S.INITIALISED,
    FrontendStep.CONNECT: S.CONNECTED,
    FrontendStep.CLOSE: S.CLOSED,
    FrontendStep.RESTART: S.INITIALISING,
    FrontendStep.REMOVE: None,
}
"""The phase after each step; None: the device is forgotten."""


def camel(state: S) -> str:
    """As io/xenbus.h spells it: InitWait."""
    return "".join(word.capitalize() for word in state.name.split("_"))


def diagram(phases: Iterable[S], step: Callable[[S, S], Step]) -> str:
    """Mermaid: an arrow is labelled with the step and the other side's states it follows from."""
    arrows: dict[tuple[S, Step], list[S]] = {}
    for phase in phases:
        for theirs in S:
            if (next_step := step(phase, theirs)).name != "WAIT":
                arrows.setdefault((phase, next_step), []).append(theirs)
    lines = ["stateDiagram-v2", f"    [*] --> {camel(S.INITIALISING)}"]
    for (phase, next_step), theirs in arrows.items():
        target = LEADS_TO[next_step]
        seen = "any" if len(theirs) == len(S) else ", ".join(map(camel, theirs))
        end = "[*]" if target is None else camel(target)
        lines.append(f"    {camel(phase)} --> {end}: {next_step.name} ({seen})")
    return "\n".join(["```mermaid", *lines, "```"])


def table(phases: Iterable[S], step: Callable[[S, S], Step]) -> str:
    """A row for each phase, a column for each state of the other side."""
    rows = [["phase", *map(camel, S)], ["---"] * (len(S) + 1)]
    for phase in phases:
        names = (step(phase, theirs).name for theirs in S)
        rows.append([f"**{camel(phase)}**", *("" if name == "WAIT" else name for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def meanings(steps: Iterable[Step]) -> str:
    """The steps in words."""
    return "\n".join(f"- `{step.name}`: {step.value}" for step in steps)


def online(phase: S, theirs: S) -> Step:
    return backend_step(phase, phase, theirs, online=True)


def offline(phase: S, theirs: S) -> Step:
    return backend_step(phase, phase, theirs, online=False)


def rendered() -> str:
    """Everything below the marker."""
    back = dict.fromkeys(ours for ours, _ in BACKEND_TABLE)
    front = dict.fromkeys(ours for ours, _ in FRONTEND_TABLE)
    parts = [
        "## The backend, while the toolstack wants the device (`online` = 1)",
        diagram(back, online), table(back, online),
        "## The backend, once the device is to go (`online` = 0)",
        diagram(back, offline), table(back, offline),
        "## The backend's steps", meanings(BackendStep),
        "## The frontend", diagram(front, frontend_step), table(front, frontend_step),
        "## The frontend's steps", meanings(FrontendStep),
    ]  # fmt: skip
    return "\n" + "\n\n".join(parts) + "\n"


def current() -> str:
    """The page as it should be."""
    text, marker, _ = PAGE.read_text().partition(MARKER)
    if not marker:
        raise SystemExit(f"{PAGE} has lost its marker: {MARKER}")
    return text + marker + rendered()


if __name__ == "__main__":
    PAGE.write_text(current())
