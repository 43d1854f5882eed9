# SPDX-License-Identifier: MIT
"""Linters and type checkers, as tests.  A tool that is missing is a failure, not a skip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "xenpy", "drivers", "tests", "docs", "vagrant", "setup.py"],
        ["ruff", "format", "--check", "xenpy", "drivers", "tests", "docs", "setup.py"],
        ["mypy"],
        ["pyright", "--pythonpath", sys.executable],
    ],
    ids=["ruff", "format", "mypy", "pyright"],
)
def test_clean(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def sources() -> list[Path]:
    kinds = {".py", ".pyi", ".c", ".h", ".sh"}
    return [ROOT / "setup.py"] + [
        path
        for top in ("xenpy", "drivers", "tests", "docs", "vagrant")
        for path in sorted((ROOT / top).rglob("*"))
        if path.suffix in kinds and path.is_file() and path.name not in GENERATED
    ]


GENERATED = {"_stable.c", "_xenctrl.c", "_engine.c"}


def test_every_source_names_its_licence() -> None:
    missing = [path for path in sources() if "SPDX-License-Identifier: MIT" not in _head(path)]
    assert not missing


def test_modules_stay_short() -> None:
    """One idea per module: 400 lines of library code are the limit."""
    long = {
        str(path.relative_to(ROOT)): count
        for path in sources()
        if path.is_relative_to(ROOT / "xenpy") and path.suffix == ".py"
        if (count := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_python_3_11_is_enough() -> None:
    """The oldest Python that is promised compiles every file: Debian 12 has it."""
    if sys.version_info[:2] == (3, 11):
        for path in sources():
            if path.suffix == ".py":
                compile(path.read_text(), str(path), "exec")


def _head(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[:3])
