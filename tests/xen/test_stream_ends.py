# SPDX-License-Identifier: MIT
"""The programs that `xenvm bench streams` runs in two domains, both of them in dom0."""

from __future__ import annotations

import subprocess
import sys

import pytest

from conformance.block_front import PATIENCE
from conformance.xen_env import nothing_left_in_the_hypervisor

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]

RING = 64 << 10
STREAM = 256 << 10


def end(way: str, role: str, place: str, count: int) -> subprocess.Popen[str]:
    words = ["-m", "xenpy.testing.stream_ends", way, role, "0", place, str(count), str(RING)]
    return subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def both(way: str, listener: str, speaker: str, count: int) -> tuple[str, str]:
    """What they print."""
    place = f"data/{way}-{listener}"
    if way in ("asyncio", "blocking"):
        place = f"/local/domain/0/{place}"
    with end(way, listener, place, count) as here, end(way, speaker, place, count) as there:
        try:
            said, trouble = there.communicate(timeout=PATIENCE)
            assert there.returncode == 0, trouble
            heard, trouble = here.communicate(timeout=PATIENCE)
            assert here.returncode == 0, trouble
        finally:
            here.kill()
            there.kill()
    return heard, said


@pytest.mark.parametrize("way", ["asyncio", "blocking", "bytes", "requests", "xenstore"])
class TestWays:
    def test_a_stream_has_a_rate(self, way: str) -> None:
        heard, _ = both(way, "sink", "source", STREAM)
        assert float(heard) > 0

    def test_round_trips_have_a_rate(self, way: str) -> None:
        _, said = both(way, "echo", "ping", 20)
        assert float(said) > 0
