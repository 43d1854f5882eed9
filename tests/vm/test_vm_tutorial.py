# SPDX-License-Identifier: MIT
"""The tutorial, typed in: each command in its order, and what is shown against what comes."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import LIMIT, Xenvm

from fences import ROOT, Command, agrees, commands, fences

TUTORIAL = sorted(path.relative_to(ROOT) for path in ROOT.glob("docs/tutorial/*.md"))
UNNAMED = {"demo"}
"""Verbs that make a machine of their own."""
LONG = {"own-driver.md"}
"""Pages that make several guests with Python in them."""
ON_THE_HOST = {"python3", "xenpy"}
"""Programs that tests/docs/test_examples.py runs, or whose arguments it has parsed."""


def commands_of(page: Path) -> list[Command]:
    blocks = [fence for fence in fences(page) if fence.language == "console"]
    return [command for block in blocks for command in commands(block)]


@pytest.fixture
def name(xenvm: Xenvm) -> Iterator[str]:
    """An instance of our own, which the page's `up` starts."""
    name = f"tutorial.{os.getpid()}"
    yield name
    xenvm.run("down", "--name", name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page), marks=[pytest.mark.long] if page.name in LONG else [])
        for page in TUTORIAL
        if commands_of(page)
    ],
)
def test_the_tutorial(xenvm: Xenvm, name: str, page: Path) -> None:
    for command in commands_of(page):
        program, verb, *words = shlex.split(command.text)
        if program in ON_THE_HOST:
            continue
        assert program == "vagrant/xenvm"
        named = [] if verb in UNNAMED else ["--name", name]
        done = subprocess.run(
            xenvm.command(verb, *named, *words), cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        # Progress, which differs: a machine or an image may have to be made first.
        lines = done.stdout.splitlines(keepends=True)
        said = "".join(line for line in lines if not line.startswith("xenvm: "))
        assert agrees(command.shown, said), f"{command}\n{said}"


def test_there_is_a_tutorial_to_be_typed_in() -> None:
    assert len([page for page in TUTORIAL if commands_of(page)]) >= 4
