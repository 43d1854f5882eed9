# SPDX-License-Identifier: MIT
"""How a daemon ends: whatever else fails, its devices are parked."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from xenpy.daemon import serve
from xenpy.drivers.block.driver import DRIVER
from xenpy.service import Service
from xenpy.testing.fake_xenstored import FakeXenstored

PATIENCE = 20.0


def test_counters_that_cannot_be_written_cost_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk, a directory that is not there."""
    begun, parked = asyncio.Event(), asyncio.Event()
    run, park = Service.run, Service.park

    async def running(self: Service) -> None:
        begun.set()
        await run(self)

    async def parking(self: Service, timeout: float) -> list[str]:
        parked.set()
        return await park(self, timeout)

    monkeypatch.setattr(Service, "run", running)
    monkeypatch.setattr(Service, "park", parking)

    async def main() -> int:
        async with FakeXenstored() as fake, asyncio.timeout(PATIENCE):
            serving = asyncio.create_task(
                serve(
                    DRIVER, kind="vbd3", options={}, store_path=fake.path,
                    rundir=str(tmp_path), stats_path=str(tmp_path / "none" / "stats.json"),
                )
            )  # fmt: skip
            await begun.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            return await serving

    assert asyncio.run(main()) == 0
    assert parked.is_set()
    assert "cannot write" in caplog.text
