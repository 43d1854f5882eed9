# SPDX-License-Identifier: MIT
"""The table of faults fits the sources: what each replaces is there, once."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from table import FAULTS, PAGE, ROOT, Fault, render

faults = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


def test_names_are_unique() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@faults
def test_what_is_replaced_is_there_once(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text().count(fault.old) == 1
    assert fault.new != fault.old
    if fault.file.endswith(".py"):
        ast.parse((ROOT / fault.file).read_text().replace(fault.old, fault.new))


def test_each_killer_is_a_test() -> None:
    files = sorted({fault.killer.partition("::")[0] for fault in FAULTS})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", *files],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {fault.killer for fault in FAULTS} - set(done.stdout.splitlines()) == set()


def test_the_page_shows_the_table() -> None:
    assert PAGE.read_text() == render(), "python -m tests.faults.table writes it again"
