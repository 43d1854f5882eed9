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
from xenpy.sd_notify import Manager
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


def test_options_are_read_again_and_the_manager_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGHUP: new devices get what the file says then; nonsense in it changes nothing."""
    services: list[Service] = []
    run = Service.run
    heard: list[str] = []

    async def running(self: Service) -> None:
        services.append(self)
        await run(self)

    class Heard(Manager):
        def _tell(self, text: str, timeout: float) -> None:
            heard.append(text.split("\n")[0])

    monkeypatch.setattr(Service, "run", running)
    answers: list[dict[str, str] | Exception] = [
        ValueError("no such tier"), RuntimeError("somebody's bug"), {"queues": "2"},
    ]  # fmt: skip

    def reload() -> dict[str, str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def main() -> int:
        async with FakeXenstored() as fake, asyncio.timeout(PATIENCE):
            serving = asyncio.create_task(
                serve(
                    DRIVER, kind="vbd3", options={"queues": "1"}, store_path=fake.path,
                    rundir=str(tmp_path), reload=reload, manager=Heard({}),
                )
            )  # fmt: skip
            while heard != ["READY=1"]:
                await asyncio.sleep(0.01)
            for rounds, queues in ((1, "1"), (2, "1"), (3, "2")):
                os.kill(os.getpid(), signal.SIGHUP)
                while len(heard) < 1 + 2 * rounds:
                    await asyncio.sleep(0.01)
                assert services[0].options == {"queues": queues}
            os.kill(os.getpid(), signal.SIGTERM)
            return await serving

    assert asyncio.run(main()) == 0
    assert heard == ["READY=1", *["RELOADING=1", "READY=1"] * 3, "STOPPING=1"]
    assert "the options stay as they are: no such tier" in caplog.text
    assert "RuntimeError: somebody's bug" in caplog.text


def test_signals_that_would_end_a_process_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGHUP without a file to read, SIGUSR1 without one to write: guests keep their disks."""

    async def main() -> int:
        async with FakeXenstored() as fake, asyncio.timeout(PATIENCE):
            serving = asyncio.create_task(
                serve(DRIVER, kind="vbd3", options={}, store_path=fake.path, rundir=str(tmp_path))
            )
            while not (tmp_path / "backend-vbd3.lock").exists():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
                os.kill(os.getpid(), number)
                await asyncio.sleep(0.05)
            return await serving

    assert asyncio.run(main()) == 0
    assert "SIGHUP: there is no configuration" in caplog.text
    assert "SIGUSR1: there is no file" in caplog.text
