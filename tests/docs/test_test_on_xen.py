# SPDX-License-Identifier: MIT
"""The example of docs/howto/test-on-xen.md, as a project; tests/vm runs it on Xen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fences import ROOT

EXAMPLE = ROOT / "docs/howto/test_on_xen.py"


def run(cwd: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_of_five_run_over_the_fakes(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path)
    said = run(tmp_path, "pytest", "-rs", "-p", "xenpy.testing.plugin", "-p", "no:cacheprovider")
    assert "2 passed, 3 skipped" in said
    assert "needs Xen: run `pytest --xen`" in said


@pytest.mark.parametrize(
    "checker", [["mypy", "--strict", "--cache-dir", os.devnull], ["pyright", "--pythonpath"]]
)
def test_it_is_typed(checker: list[str]) -> None:
    more = [sys.executable] if checker[0] == "pyright" else []
    run(ROOT, *checker, *more, os.fspath(EXAMPLE))
