# SPDX-License-Identifier: MIT
"""The native block engine under a coverage-guided fuzzer, with sanitizers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from fuzzing import ENGINE, SEED, Fuzzer

UNTIL_FOUND = 240

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.mark.background
def test_nothing_is_found(fuzzer: Fuzzer) -> None:
    status, said = fuzzer.wait()
    assert status == 0, said[-6000:]
    (runs,) = re.findall(r"stat::number_of_executed_units: (\d+)", said)
    covered = [int(number) for number in re.findall(r"cov: (\d+)", said)]
    print(f"seed {SEED}: {runs} runs, coverage from {covered[0]} to {covered[-1]}")
    assert int(runs) > 100_000
    assert covered[-1] > covered[0]


FAULTS = {
    "segments without a bound": ("request.h", " || count > limits->max_indirect", ""),
    "the end of the disk": (
        "request.h", "request->sector > limits->sectors - request->sectors", "false",
    ),
    "padding": ("request.h", "memcpy(slot + 8, &rest, BLOCK_RESPONSE_BYTES(abi) - 8)",
                "memcpy(slot + 8, &rest, abi == BLOCK_ABI_32 ? 4 : 4)"),
    "unmap": ("grant_cache.c", "    for (i = 0; cache->extents && i < cache->max_pages; i++) {",
              "    for (i = 1; cache->extents && i < cache->max_pages; i++) {"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(tmp_path: Path, name: str) -> None:
    file, old, new = FAULTS[name]
    engine = tmp_path / "engine"
    shutil.copytree(ENGINE, engine)
    text = (engine / file).read_text()
    assert text.count(old) == 1
    (engine / file).write_text(text.replace(old, new))
    fuzzer = Fuzzer(tmp_path, engine, UNTIL_FOUND)
    status, said = fuzzer.wait()
    assert status != 0, "it was not found"
    assert "ERROR: " in said
    assert re.search(r"AddressSanitizer|libFuzzer: deadly signal|runtime error", said)
