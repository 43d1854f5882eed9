# SPDX-License-Identifier: MIT
"""duplex.h without Xen and without Python, under sanitizers: duplex.c says what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_engine import ADDRESS, SEED, THREAD, run

WAYS = {
    "both ways": ("1024", "2048", "3000000", "3000000"),
    "unequal": ("65536", "1024", "5000000", "2000000"),
    "one way": ("1024", "1024", "20000000", "0"),
    "one way, long": ("1024", "1024", "200000000", "0"),
}
"""Bytes of the rings, and what goes through each."""


@pytest.mark.parametrize("sanitizer", [ADDRESS, THREAD], ids=["address", "thread"])
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.long] if "long" in way else []) for way in WAYS]
)
def test_no_event_is_lost(tmp_path: Path, sanitizer: tuple[str, ...], way: str) -> None:
    said = run(tmp_path, "duplex", sanitizer, *WAYS[way], SEED)
    events, more, followed, too = (int(word) for word in said.split() if word.isdigit())
    assert min(events, more) > 100
    assert (followed + too > 0) is (not way.startswith("one way"))
