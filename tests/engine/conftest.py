# SPDX-License-Identifier: MIT
"""Five minutes of fuzzing go on beside all other tests: the fuzzer is started first, and looked at
last."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from fuzzing import ENGINE, Fuzzer

SECONDS = 300
FUZZER = pytest.StashKey[Fuzzer]()


def in_background(item: pytest.Item) -> bool:
    return item.get_closest_marker("background") is not None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=in_background)


def pytest_runtestloop(session: pytest.Session) -> None:
    """Before the first test.  It takes what CPU time the others leave."""
    if session.config.option.collectonly or not any(map(in_background, session.items)):
        return
    work = Path(tempfile.mkdtemp(prefix="xenpy-fuzz-"))
    session.config.add_cleanup(lambda: shutil.rmtree(work, ignore_errors=True))
    session.stash[FUZZER] = fuzzer = Fuzzer(work, ENGINE, SECONDS, nice=19)
    session.config.add_cleanup(fuzzer.close)


@pytest.fixture
def fuzzer(request: pytest.FixtureRequest) -> Fuzzer:
    """The one that runs since the first test."""
    return request.session.stash[FUZZER]
