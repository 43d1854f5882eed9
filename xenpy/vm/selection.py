# SPDX-License-Identifier: MIT
"""Which tests `xenvm test` was asked for: words of the command line as pytest's arguments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xenpy.vm.checkout import find_root
from xenpy.vm.errors import UsageError

__all__ = ["Selection"]


@dataclass(frozen=True)
class Selection:
    """What the command line asks for.

    Attributes:
        marks: pytest's -m.
        paths: tests that were named; none: all.
        options: what else goes to pytest.
        narrowed: -m or -k was given, so that a lane may have no such tests.
    """

    marks: str
    paths: tuple[str, ...]
    options: tuple[str, ...]
    narrowed: bool = False

    @classmethod
    def of(
        cls, words: Sequence[str], *, fast: bool, everything: bool, root: Path | None = None
    ) -> Selection:
        """Sort the words for pytest into paths, marks and options.

        `root` is the checkout.  Raises UsageError for a path that is not there.
        """
        root = root or find_root()
        marks = ["not slow and not long" if fast else "" if everything else "not long"]
        paths: list[str] = []
        options: list[str] = []
        narrowed = False
        rest = iter(words)
        for word in rest:
            narrowed = narrowed or word.startswith(("-k", "-m"))
            if word == "-m":
                marks.append(next(rest, ""))
            elif word.startswith("-m"):
                marks.append(word[2:].removeprefix("="))
            elif word in _OPTIONS_WITH_VALUE:
                options += [word, *([value] if (value := next(rest, None)) is not None else [])]
            elif word.startswith("-"):
                options.append(word)
            else:
                paths.append(_test_path(word, root))
        return cls(_both(*marks), tuple(paths), tuple(options), narrowed)

    def below(self, *directories: str) -> list[str]:
        """The paths to run of those below `directories`; [] if none was asked for."""
        if not self.paths or "tests" in self.paths:
            return list(directories)
        return [
            path for path in self.paths if path.startswith(tuple(f"{top}/" for top in directories))
            or path in directories
        ]  # fmt: skip

    def pytest(self, paths: Sequence[str], junit: str, *more_marks: str) -> list[str]:
        """pytest's arguments."""
        marks = _both(self.marks, *more_marks)
        select = ["-m", marks] if marks else []
        return ["-q", *select, f"--junitxml={junit}", *self.options, *paths]


_OPTIONS_WITH_VALUE = {
    "-k", "-p", "-n", "-o", "-W", "--tb", "--maxfail", "--durations", "--timeout", "--capture",
    "--deselect", "--ignore", "--log-level", "--log-cli-level", "--hypothesis-seed",
}  # fmt: skip


def _both(*marks: str) -> str:
    return " and ".join(f"({mark})" for mark in marks if mark)


def _test_path(word: str, root: Path) -> str:
    """`word` as a path below the checkout, the way every lane understands it."""
    name, colons, test = word.partition("::")
    path = os.path.relpath(os.path.join(root, name), root)
    if not (path == "tests" or path.startswith("tests/")) or not (root / path).exists():
        raise UsageError(
            f"no such tests: {word}",
            hint="name files or directories below tests/; -k EXPRESSION chooses by name",
        )
    return f"{path}{colons}{test}"
