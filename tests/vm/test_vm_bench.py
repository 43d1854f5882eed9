# SPDX-License-Identifier: MIT
"""The benchmark's machinery, by one race and one cost.  The figures themselves are no test's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Xenvm


@pytest.mark.slow
def test_a_race_and_a_cost(xenvm: Xenvm, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    words = ["--rounds", "1", "--json", str(path)]
    for name in ("randread-qd1/file/loop", "syscalls/file"):
        words += ["--cells", name]
    done = xenvm.run("bench", "block", *words)
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    race, calls = json.loads(path.read_text())["cells"]
    for cell, line in zip((race, calls), lines[1:], strict=True):
        assert line.startswith(cell["name"])
        assert cell["why"] == ""
        assert cell["rounds"] == 1
        assert cell["verdict"] in ("goal", "gate", "MISSED")
    assert race["ratio"] == pytest.approx(race["ours"] / race["theirs"])
    assert 0.05 < race["ratio"] < 20
    for instructions in (race["instructions"], race["instructions_theirs"]):
        # The guest's share alone is some thousands; a backend in Python costs no millions.
        assert 5_000 < instructions < 5_000_000
    assert 0 < calls["ours"] < 100
    assert b"round 1 of 1: randread-qd1 on loop" in done.stderr
