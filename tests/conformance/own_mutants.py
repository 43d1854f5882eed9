# SPDX-License-Identifier: MIT
"""Mistakes that one makes in a driver of one's own, each made in a copy of drivers/template.

A module that runs it imports every name and defines a fixture `level`: "fake" or "xen".  All copies
are tested by one run of pytest, in a directory of their own: a mutant may leave anything behind.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

from fences import ROOT
from xenpy.cli.new import generate

__all__ = [
    "MUTANTS",
    "Mutant",
    "outcomes",
    "test_each_mistake_is_noticed",
    "test_the_driver_passes",
]

PATIENCE: Final = {"fake": 10, "xen": 60}
"""Seconds that the suite waits for what hangs, which is one mutant only."""
LIMIT: Final = 900.0
"""Seconds for all of it."""
EXAMPLES: Final = "test_each_example_comes_out_as_it_says"
HEADER: Final = "test_the_records_are_those_of_the_header"
ONCE: Final = {HEADER}
"""Tests that need no world, and so have no level."""


@dataclass(frozen=True)
class Mutant:
    """A mistake.

    Attributes:
        edits: what is replaced in the driver, each text once, and by what.
        killer: the test of `BackendSuite` that must fail.
    """

    name: str
    edits: Mapping[str, str]
    killer: str


MUTANTS: Final = (
    Mutant(
        "answers with another id",
        {"return Response(request.id, sum(content), 0)": "return Response(request.id ^ 1, 0, 0)"},
        EXAMPLES,
    ),
    Mutant(
        "cuts the id to 32 bits",
        {"Response(request.id, self.naps, 0)": "Response(request.id & 0xFFFFFFFF, self.naps, 0)"},
        EXAMPLES,
    ),
    Mutant(
        "a field in another place",
        {"    operation: u8\n": "", "    ref: u32": "    operation: u8\n    ref: u32"},
        HEADER,
    ),
    Mutant(
        "a field of another width", {"status: i16": "status: i32", "import i16,": "import i32,"},
        HEADER,
    ),
    Mutant("a field of another sign", {"length: u16": "length: i16"}, HEADER),
    Mutant(
        "a key of another name", {'"feature-nap": 1': '"feature-naps": 1'},
        "test_the_backend_publishes_its_features",
    ),
    Mutant(
        "a value in another byte order",
        {"sum(content), 0)": 'int.from_bytes(sum(content).to_bytes(4, "little"), "big"), 0)'},
        EXAMPLES,
    ),
    Mutant(
        "a length off by one",
        {"(request.ref, request.length)": "(request.ref, request.length - 1)"},
        EXAMPLES,
    ),
    Mutant("a length not checked", {"request.length > len(page)": "request.length < 0"}, EXAMPLES),
    Mutant(
        "a wait without a limit", {"request.length > self.longest": "request.length < 0"}, EXAMPLES
    ),
    Mutant(
        "nonsense is answered with success",
        {"        raise NotImplementedError": "        return Response(request.id, 0, 0)"},
        EXAMPLES,
    ),
    Mutant(
        "maps for reading, and writes", {"(request.ref, writable=True)": "(request.ref)"}, EXAMPLES
    ),
    Mutant(
        "maps for writing, and only reads",
        {
            "        content = self.read(request.ref, request.length)\n":
            "        with self.map(request.ref, writable=True) as page:\n"
            "            if request.length > len(page):\n"
            "                raise OSError(errno.EINVAL, 'more than a page')\n"
            "            content = bytes(page[: request.length])\n"
        },
        "test_a_page_that_is_granted_for_reading_only",
    ),
    Mutant(
        "keeps a page mapped",
        {
            "            content = bytes(page[: request.length])\n":
            "            content = bytes(page[: request.length])\n"
            "            self.first = page[:1]\n"
        },
        "test_no_page_stays_mapped",
    ),
    Mutant(
        "takes no notice of an errno",
        {
            "        content = self.read(request.ref, request.length)\n":
            "        try:\n"
            "            content = self.read(request.ref, request.length)\n"
            "        except OSError as error:\n"
            "            if request.length > 4096:\n"
            "                raise\n"
            "            content = b''\n"
        },
        "test_a_page_that_is_not_granted",
    ),
    Mutant(
        "fails at a number that nobody sends",
        {"sum(content), 0)": "sum(content) * request.length // request.length, 0)"},
        "test_numbers_at_their_ends_and_at_random",
    ),
    Mutant(
        "takes a key for a number",
        {'number(self.frontend, "max-nap", LONGEST)': 'int(self.frontend.get("max-nap", LONGEST))'},
        "test_keys_that_make_no_sense",
    ),
    Mutant(
        "one request's numbers in another's answer",
        {
            "        # `request` is a private copy":
            "        self.asked = request\n"
            "        await asyncio.sleep(0)\n"
            "        request = self.asked\n"
            "        # `request` is a private copy"
        },
        "test_many_requests_at_a_time",
    ),
    Mutant(
        "never answers",
        {"await asyncio.sleep(request.length / 1000)": "await asyncio.Event().wait()"},
        EXAMPLES,
    ),
    Mutant(
        "goes on when it is told to stop",
        {
            "        await asyncio.sleep(request.length / 1000)\n":
            "        try:\n"
            "            await asyncio.sleep(60 * request.length / 1000)\n"
            "        except asyncio.CancelledError:\n"
            "            await asyncio.sleep(20)\n"
        },
        "test_a_device_that_is_taken_away_by_force",
    ),
    Mutant(
        "remembers the frontend before",
        {"        self.naps = 0\n\n    async def disconnect": "\n    async def disconnect"},
        "test_a_frontend_that_goes_and_comes_back",
    ),
    Mutant(
        "state in the class",
        {
            "        self.naps = 0\n        self.longest": "        self.longest",
            "        self.naps += 1\n": "        type(self).naps += 1\n",
            "    max_inflight = 16\n": "    max_inflight = 16\n    naps = 0\n",
            "        self.naps = 0\n\n    async def disconnect":
            "        type(self).naps = 0\n\n    async def disconnect",
        },
        "test_two_devices_know_nothing_of_each_other",
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(level: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What became of each test, by its name, with what pytest said if it failed: the whole suite
    of the driver as it is, and the killer of each mutant."""
    top = tmp_path_factory.mktemp("mutants")
    generate("original", top / "original")
    wanted = ["original/test_original.py"]
    for number, mutant in enumerate(MUTANTS):
        name = _name(number)
        generate(name, top / name)
        _edit(top / f"{name}/{name}.py", mutant.edits)
        _edit(
            top / f"{name}/test_{name}.py",
            {"    features = ": f"    patience = {PATIENCE[level]}\n    features = "},
        )
        wanted.append(f"{name}/test_{name}.py::{_test(number, level)}")
    return _run(top, wanted)


def _name(number: int) -> str:
    return f"mutant_{number}"


def _test(number: int, level: str) -> str:
    """The name of a mutant's killer, without its file."""
    killer = MUTANTS[number].killer
    return f"TestMutant{number}::{killer}" + ("" if killer in ONCE else f"[{level}]")


def _edit(path: Path, edits: Mapping[str, str]) -> None:
    text = path.read_text()
    for old, new in edits.items():
        assert text.count(old) == 1, f"the table does not fit the driver any more: {old!r}"
        text = text.replace(old, new)
    path.write_text(text)


def _run(top: Path, wanted: list[str]) -> Mapping[str, str]:
    junit = top / "junit.xml"
    here = ["--xen-here"] if any("[xen]" in test for test in wanted) else []
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=0",
         "-p", "xenpy.testing.plugin", "--tb=native", f"--junitxml={junit}", *here, *wanted],
        cwd=top, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip
    assert junit.exists(), done.stdout + done.stderr
    found: dict[str, str] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        told = [f"{child.tag}: {child.get('message')}" for child in case]
        where = re.sub(r"^.*\.", "", case.get("classname") or "")
        found[f"{where}::{case.get('name')}"] = "\n".join(told)
    return found


def test_the_driver_passes(level: str, outcomes: Mapping[str, str]) -> None:
    """As it is: else a mutant's failure says nothing."""
    ours = {name: told for name, told in outcomes.items() if "Mutant" not in name}
    mine = {name: told for name, told in ours.items() if name.endswith(f"[{level}]")}
    assert len(mine) == 11
    assert not any(mine.values()), mine
    assert not any(told.startswith(("failure", "error")) for told in ours.values()), ours


@pytest.mark.parametrize("number", range(len(MUTANTS)), ids=[it.name for it in MUTANTS])
def test_each_mistake_is_noticed(level: str, outcomes: Mapping[str, str], number: int) -> None:
    """By the test that is there for it, which fails and is not merely in error."""
    assert outcomes[_test(number, level)].startswith("failure: ")
