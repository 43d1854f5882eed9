# SPDX-License-Identifier: MIT
"""What `xenpy new` makes: its own tests pass, and it is clean to strict type checkers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from conformance.own_mutants import MUTANTS
from fences import ROOT
from xenpy.cli import common, new
from xenpy.cli.errors import UsageError
from xenpy.cli.main import main
from xenpy.cli.new import generate

pytestmark = pytest.mark.slow

NAME = "lamp_switch"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    assert len(generate(NAME, tmp_path / "project")) == 5
    return tmp_path / "project"


def run(project: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=project, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT), "MYPYPATH": os.fspath(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_tests_pass(project: Path) -> None:
    said = run(project, "pytest", "-q", "-p", "no:cacheprovider")
    assert "13 passed, 11 skipped" in said


def test_it_is_typed(project: Path) -> None:
    files = sorted(path.name for path in project.glob("*.py"))
    run(project, "mypy", "--strict", "--cache-dir", os.devnull, *files)
    ruff = ["ruff", "check", "--isolated", "--no-cache", "--line-length", "100"]
    run(project, *ruff, "--select", "E,F,B,UP,RET", *files)


def test_it_has_its_name(project: Path) -> None:
    names = sorted(path.name for path in project.iterdir())
    assert names == [
        "README.md", f"ask_{NAME}.py", f"{NAME}.py", "pyproject.toml", f"test_{NAME}.py"
    ]  # fmt: skip
    for path in project.iterdir():
        assert "template" not in path.read_text().lower()
        assert "SPDX" not in path.read_text()
    assert f'RingProtocol("{NAME}"' in (project / f"{NAME}.py").read_text()
    assert "class LampSwitch(" in (project / f"{NAME}.py").read_text()


def test_a_package_can_name_it_among_its_entry_points(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project)
    point = EntryPoint(NAME, f"{NAME}:DRIVER", "xenpy.drivers")
    monkeypatch.setattr(common, "entry_points", lambda group: [point])
    try:
        found = common.find_driver(NAME)
    finally:
        sys.modules.pop(NAME, None)
    assert (found.name, found.kind) == (NAME, NAME)


@pytest.mark.parametrize(
    "name",
    ["", "Lamp", "9lives", "a-b", "class", "none", "request", "nap", "asyncio", "xenpy", "é"],
)
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        generate(name, tmp_path / "project")
    assert not (tmp_path / "project").exists()


def test_bytecode_beside_the_template_is_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(new.TEMPLATE, tmp_path / "template")
    (tmp_path / "template/__pycache__").mkdir(exist_ok=True)
    monkeypatch.setattr(new, "TEMPLATE", tmp_path / "template")
    assert len(generate(NAME, tmp_path / "project")) == 5


def test_the_mistakes_that_the_suite_notices_are_told() -> None:
    text = (ROOT / "docs/design/template.md").read_text()
    rows = [f"| {mutant.name} | `{mutant.killer}` |" for mutant in MUTANTS]
    assert [line for line in text.splitlines() if line.endswith("` |")] == rows


def test_nothing_is_overwritten(project: Path) -> None:
    before = (project / f"{NAME}.py").read_text()
    assert main(["new", "other", "--directory", os.fspath(project)]) == 2
    assert (project / f"{NAME}.py").read_text() == before
