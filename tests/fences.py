# SPDX-License-Identifier: MIT
"""The fenced examples of our Markdown: what they say, and what they say comes out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Command", "Fence", "agrees", "commands", "fences", "pages"]

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "$ "
ANY = "..."


@dataclass(frozen=True)
class Fence:
    """One fenced block.

    Attributes:
        path: of the page, below the checkout.
        line: of the opening fence.
        language: what stands behind it.
        shown: the `output` block that follows, None if none does.
    """

    path: Path
    line: int
    language: str
    text: str
    shown: str | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line behind a prompt, and the lines that are shown below it."""

    fence: Fence
    text: str
    shown: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.fence}: {self.text}"


def pages() -> list[Path]:
    """Every page, below the checkout."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("drivers/*/README.md")]
    return sorted(path.relative_to(ROOT) for path in found if "_build" not in path.parts)


def fences(path: Path, text: str | None = None) -> list[Fence]:
    """The blocks of a page, those that are `output` beside the one before."""
    found: list[Fence] = []
    inside: list[str] | None = None
    opened, language = 0, ""
    lines = (text if text is not None else (ROOT / path).read_text()).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            opened, language, inside = number, line[3:].strip(), []
        else:
            content = "".join(f"{line}\n" for line in inside)
            if language == "output" and found and found[-1].shown is None:
                before = found.pop()
                found.append(Fence(path, before.line, before.language, before.text, content))
            else:
                found.append(Fence(path, opened, language, content))
            inside = None
    if inside is not None:
        raise ValueError(f"{path}:{opened}: a fence that is not closed")
    return found


def commands(fence: Fence) -> list[Command]:
    """The commands of a `console` block."""
    found: list[tuple[str, list[str]]] = []
    for line in fence.text.splitlines():
        if line.startswith(PROMPT):
            found.append((line.removeprefix(PROMPT), []))
        elif not found:
            raise ValueError(f"{fence}: no prompt before {line!r}")
        else:
            found[-1][1].append(line)
    return [Command(fence, text, tuple(shown)) for text, shown in found]


def agrees(shown: Sequence[str], output: str) -> bool:
    """Is `output` what is shown?  `...` is anything in a line, and alone any lines."""
    pattern = "".join(r"(?:.*\n)*?" if line == ANY else _like(line) for line in shown)
    text = "".join(f"{line.rstrip()}\n" for line in output.splitlines())
    return re.fullmatch(pattern, text) is not None


def _like(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.rstrip().split(ANY)) + r"\n"
