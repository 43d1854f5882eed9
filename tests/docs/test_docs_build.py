# SPDX-License-Identifier: MIT
"""The documentation holds together: Sphinx finds no fault, links lead to files, lists are whole."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fences import ROOT, pages
from xenpy.vm import host

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.M)
MODULE = re.compile(r"^\.\. automodule:: (.*)$", re.M)


@pytest.mark.slow
def test_sphinx_finds_no_fault(tmp_path: Path) -> None:
    html = tmp_path / "html"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "trees",
         "docs", html],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "RING_FINAL_CHECK_FOR_REQUESTS" in (html / "reference/rings.html").read_text()
    contributing = (html / "project/contributing.html").read_text()
    assert "Add a driver" in contributing
    assert 'href="security.html"' in contributing


def anchors(page: Path) -> set[str]:
    """The headings, as a forge and myst make anchors of them."""
    words = (re.sub(r"[^\w\- ]", "", text.lower()) for text in HEADING.findall(page.read_text()))
    return {text.replace(" ", "-") for text in words}


@pytest.mark.parametrize("page", pages(), ids=str)
def test_links_lead_to_files(page: Path) -> None:
    for link in LINK.findall((ROOT / page).read_text()):
        path, _, anchor = link.partition("#")
        assert ":" not in path, f"{link}: we speak of ourselves alone"
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_diagram_is_the_tables() -> None:
    drawn = runpy.run_path(str(ROOT / "docs/xenbus_diagram.py"))
    assert drawn["PAGE"].read_text() == drawn["current"](), "run docs/xenbus_diagram.py"


def test_the_diagram_s_arrows_go_where_the_steps_say() -> None:
    drawn = runpy.run_path(str(ROOT / "docs/xenbus_diagram.py"))
    for steps in (drawn["BackendStep"], drawn["FrontendStep"]):
        for step in steps:
            target = drawn["LEADS_TO"].get(step)
            said = re.findall(r"go to (\w+)", step.value)
            assert not said or said == [drawn["camel"](target)]
            assert (step in drawn["LEADS_TO"]) == (step.name != "WAIT")


def test_every_dependency_has_its_reason() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    wanted = {
        re.split(r"[\[<>=]", name)[0]
        for names in (
            settings["build-system"]["requires"],
            project["dependencies"],
            *project["optional-dependencies"].values(),
            host.VM_PACKAGES,
            host.USER_PACKAGES,
            host.TEST_PACKAGES,
            host.LONG_TEST_PACKAGES,
        )
        for name in names
    }
    rows = [
        line.split("|")[1]
        for line in (ROOT / "docs/design/dependencies.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == wanted


def test_the_reference_has_every_fake() -> None:
    text = "".join(path.read_text() for path in sorted(ROOT.glob("docs/reference/*.rst")))
    fakes = {f"xenpy.testing.{path.stem}" for path in ROOT.glob("xenpy/testing/fake_*.py")}
    assert fakes
    assert fakes <= set(MODULE.findall(text))
