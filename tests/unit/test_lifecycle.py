# SPDX-License-Identifier: MIT
"""One device's life over a fake xenstored, with a driver that only writes down what it is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import pytest

from xenpy import lifecycle
from xenpy.backend import Device, DeviceContext, Keys
from xenpy.devlog import TokenBucket
from xenpy.service import Service
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DomId
from xenpy.xenstore import Store

PATIENCE = 20.0
GUEST = DomId(7)
BACK = "/local/domain/0/backend/vtest/7/1"
FRONT = "/local/domain/7/device/vtest/1"


class Recorder(Device):
    """Does nothing, but says what it was asked to do."""

    def __init__(self, context: DeviceContext, journal: list[str], gate: asyncio.Event) -> None:
        super().__init__(context)
        self.journal = journal
        self.gate = gate

    async def prepare(self) -> Keys:
        self.journal.append("prepare")
        return {}

    async def connect(self, frontend: Mapping[str, str]) -> Keys:
        self.journal.append("connect")
        return {"answer": 42}

    async def disconnect(self) -> None:
        """Lasts until the gate is open."""
        self.journal.append("stop")
        await self.gate.wait()
        self.journal.append("disconnect")

    async def close(self) -> None:
        self.journal.append("close")


class Bucket(TokenBucket):
    """Time passes for it only while somebody waits for a token."""

    def __init__(self, burst: int, rate: float) -> None:
        self.now = 0.0
        super().__init__(burst, rate, clock=lambda: self.now)

    def take(self) -> float:
        delay = super().take()
        self.now += delay
        return delay


class Bench:
    """A xenstored, a service and one device of it."""

    def __init__(self, fake: FakeXenstored, service: Service) -> None:
        self.fake = fake
        self.service = service
        self.journal: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def make(self) -> None:
        """What libxl writes; the guest's driver is not loaded yet."""
        for path, perms, keys in (
            (FRONT, f"n{GUEST},r0", {"state": "1"}),
            (BACK, f"n0,r{GUEST}", {"frontend": FRONT, "frontend-id": str(GUEST), "online": "1"}),
        ):
            self.fake.write(path, "")
            self.fake.set_perms(path, perms)
            for key, value in keys.items():
                self.fake.write(f"{path}/{key}", value)
        self.fake.write(f"{BACK}/state", "1")

    def show(self, state: int) -> None:
        """The frontend's state."""
        self.fake.write(f"{FRONT}/state", str(state))

    def state(self) -> str | None:
        return self.fake.get(f"{BACK}/state")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.005)

    async def reach(self, state: str | None) -> None:
        await self.until(lambda: self.state() == state)

    async def connect(self) -> None:
        self.make()
        await self.reach("2")
        self.show(3)
        await self.reach("4")
        self.show(4)


def on_bench(test: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        xen = FakeXen()
        async with FakeXenstored() as fake, Store.open(fake.path) as store:
            fake.introduce(GUEST)
            service = Service(
                store, "vtest", lambda context: Recorder(context, bench.journal, bench.gate),
                xen=xen.domain(0),
            )  # fmt: skip
            bench = Bench(fake, service)
            running = asyncio.create_task(service.run())
            try:
                await service.ready.wait()
                await test(bench)
            finally:
                bench.gate.set()
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        xen.close()

    asyncio.run(main())


def test_closed_is_written_when_nothing_is_held_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long it takes: a guest that sees Closed ends its grants."""
    monkeypatch.setattr(lifecycle, "DISCONNECT_BOUND", 0.02)

    async def test(bench: Bench) -> None:
        await bench.connect()
        bench.gate.clear()
        bench.show(5)
        await bench.reach("5")
        bench.show(6)
        life = bench.service.devices[BACK]
        await bench.until(lambda: life.draining)
        assert bench.state() == "5"
        assert "disconnect" not in bench.journal
        bench.gate.set()
        await bench.reach("6")
        assert not life.draining

    on_bench(test)


def test_a_frontend_that_flaps_is_slowed_down(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen steps at once, then each waits for a token."""
    monkeypatch.setattr(lifecycle, "TokenBucket", Bucket)

    async def test(bench: Bench) -> None:
        await bench.connect()
        with caplog.at_level(logging.INFO):
            for _ in range(5):
                for shown, reached in ((5, "5"), (6, "6"), (1, "2"), (3, "4")):
                    bench.show(shown)
                    await bench.reach(reached)
        # It is served all the same.
        assert bench.journal.count("connect") == 6
        slowed = [line for line in caplog.messages if "changes state too fast" in line]
        assert len(slowed) == 2 + 5 * 4 - 16

    on_bench(test)


def test_keys_in_a_directory_of_another_domain_are_not_believed() -> None:
    """XSA-175: whoever owns the directory can write what a backend maps and serves."""

    async def test(bench: Bench) -> None:
        bench.make()
        await bench.reach("2")
        bench.fake.set_perms(FRONT, "n9,r0")
        bench.show(3)
        await bench.until(lambda: bench.state() != "2")
        assert bench.state() == "5"
        assert "connect" not in bench.journal
        error = bench.fake.get("/local/domain/0/error/backend/vtest/7/1/error")
        assert error == f"{FRONT} belongs to domain 9, not to 7"

    on_bench(test)


def test_a_directory_that_was_removed_is_not_brought_back() -> None:
    """A `state` written after the toolstack's rm would be a device that nobody made."""

    async def test(bench: Bench) -> None:
        await bench.connect()
        bench.gate.clear()
        bench.show(6)
        await bench.until(lambda: "stop" in bench.journal)
        bench.fake.rm(BACK)
        bench.gate.set()
        await bench.until(lambda: "close" in bench.journal or bench.state() is not None)
        assert bench.state() is None
        await bench.until(lambda: BACK not in bench.service.devices)
        assert bench.journal[-1] == "close"

    on_bench(test)


def test_a_device_is_connected_once_at_a_time() -> None:
    """XSA-350: a frontend that starts over is served after a disconnect, never beside it."""

    async def test(bench: Bench) -> None:
        await bench.connect()
        bench.gate.clear()
        bench.show(1)
        await bench.until(lambda: len(bench.journal) > 2)
        bench.show(3)
        await asyncio.sleep(0.05)
        assert bench.journal == ["prepare", "connect", "stop"]
        bench.gate.set()
        await bench.until(lambda: bench.journal.count("connect") == 2)
        assert bench.journal[2:] == ["stop", "disconnect", "prepare", "connect"]

    on_bench(test)
