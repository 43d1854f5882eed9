# SPDX-License-Identifier: MIT
"""The life of a frontend device, with a driver that only writes down what it is told.

What a backend can do to it is in `conformance.block_front_suite`.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from xenpy.backend import Keys
from xenpy.errors import PeerError, XenConnectionError, XenError, XenTimeoutError
from xenpy.frontend import Frontend, FrontendContext
from xenpy.frontend_life import FrontendLife
from xenpy.frontend_nodes import FrontendNodes
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DOM0, DomId, XenbusState
from xenpy.xenstore import Store, Transaction

T = TypeVar("T")

FRONT = "/local/domain/7/device/echo/3"
BACK = "/local/domain/0/backend/echo/7/3"


class Recorder(Frontend):
    """Remembers its life."""

    transport_keys = re.compile(r"ring-ref\d*|event-channel")

    def __init__(self, context: FrontendContext) -> None:
        super().__init__(context)
        self.calls: list[str] = []
        self.wrong: Exception | None = None
        self.reason: Exception | None = None

    async def publish(self, backend: Mapping[str, str]) -> Keys:
        self.calls.append(f"publish {backend['feature']}")
        if self.wrong is not None:
            raise self.wrong
        return {"ring-ref": 9, "event-channel": 4}

    async def connect(self, backend: Mapping[str, str]) -> None:
        self.calls.append(f"connect {backend['feature']}")

    async def changed(self, backend: Mapping[str, str]) -> None:
        if self.calls[-1] != "changed":
            self.calls.append("changed")

    async def drain(self) -> None:
        self.calls.append("drain")

    async def disconnect(self, reason: Exception) -> None:
        self.reason = reason
        if self.calls[-1:] != ["disconnect"]:
            self.calls.append("disconnect")


class Stage:
    """A store with one device, and a life for it."""

    def __init__(self, fake: FakeXenstored, store: Store) -> None:
        self.fake = fake
        self.store = store
        self.made: list[Recorder] = []
        self.wrong: Exception | None = None
        for path, perms, keys in (
            (FRONT, "n7,r0", {"backend": BACK, "backend-id": "0", "state": "1"}),
            (BACK, "n0,r7", {"frontend": FRONT, "frontend-id": "7", "feature": "x", "state": "2"}),
        ):
            fake.write(path, "")
            fake.set_perms(path, perms)
            for key, value in keys.items():
                fake.write(f"{path}/{key}", value)

    def life(self, **how: float | bool) -> FrontendLife:
        def make(context: FrontendContext) -> Recorder:
            self.made.append(Recorder(context))
            self.made[-1].wrong = self.wrong
            return self.made[-1]

        return FrontendLife(self.store, FRONT, make, xen=FakeXen().domain(7), **how)

    async def until(self, path: str, *values: str) -> None:
        async with asyncio.timeout(20):
            while self.fake.get(path) not in values:
                await asyncio.sleep(0.001)

    async def serve(self) -> None:
        """A backend that follows."""
        for theirs, ours in (("3", "4"), ("56", "5"), ("6", "6")):
            await self.until(f"{FRONT}/state", *theirs)
            self.fake.write(f"{BACK}/state", ours)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[FrontendLife]:
        serving = asyncio.create_task(self.serve())
        async with self.life() as life:
            yield life
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def acted(test: Callable[[Stage], Awaitable[None]]) -> Callable[[], None]:
    """Run a coroutine as a test, on a stage of its own."""

    async def run() -> None:
        async with FakeXenstored() as fake, Store.open(fake.path, timeout=2) as store:
            async with asyncio.timeout(60):
                await test(Stage(fake, store))

    return lambda: asyncio.run(run())


@acted
async def test_a_life_from_initialising_to_closed(stage: Stage) -> None:
    for key in ("ring-ref0", "ring-ref17", "ring-refs", "event-channel"):
        stage.fake.write(f"{FRONT}/{key}", "old")
    async with stage.connected() as life:
        assert life.phase is XenbusState.CONNECTED
        assert stage.fake.read(f"{FRONT}/state") == "4"
        keys = {key: stage.fake.get(f"{FRONT}/{key}") for key in ("ring-ref", "event-channel")}
        assert keys == {"ring-ref": "9", "event-channel": "4"}
        # Only what `transport_keys` names is a connection's.
        assert stage.fake.get(f"{FRONT}/ring-ref0") is None
        assert stage.fake.get(f"{FRONT}/ring-ref17") is None
        assert stage.fake.get(f"{FRONT}/ring-refs") == "old"
        context = life.device.context
        assert (context.peer, context.devid, context.ends.domid) == (DOM0, 3, 7)
    assert stage.fake.read(f"{FRONT}/state") == "6"
    calls = [call for call in stage.made[0].calls if call != "changed"]
    assert calls == ["publish x", "connect x", "drain", "disconnect"]
    await life.close()
    with pytest.raises(XenError) as caught:
        await life.ready(1)
    assert caught.value.errno == errno.ESHUTDOWN


@acted
async def test_a_driver_s_bug_closes_its_device(stage: Stage) -> None:
    stage.wrong = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        async with stage.life():
            raise AssertionError
    assert stage.made[0].calls == ["publish x", "disconnect"]
    assert stage.made[0].reason is stage.wrong
    assert stage.fake.read(f"{FRONT}/state") == "6"
    assert stage.fake.read("/local/domain/7/error/device/echo/3/error") == "a bug"


@acted
async def test_a_xenstored_that_restarts_is_survived(stage: Stage) -> None:
    async with stage.connected() as life:
        for _ in range(2):
            await stage.fake.stop()
            await asyncio.sleep(0.1)
            await stage.fake.start()
            async with asyncio.timeout(20):
                while not stage.store.connected:
                    await asyncio.sleep(0.01)
        assert life.connected.is_set()
        assert "disconnect" not in stage.made[0].calls
        # It still sees what happens.
        stage.fake.write(f"{BACK}/state", "2")
        async with asyncio.timeout(20):
            while stage.made[0].calls.count("publish x") < 2:
                await asyncio.sleep(0.01)


@acted
async def test_a_backend_that_lets_no_transaction_through_for_a_while(stage: Stage) -> None:
    """It changes its state all the time: EAGAIN, sixteen times in a row."""
    transact = stage.store.transact
    asked = 0

    async def crowded(fn: Callable[[Transaction], Awaitable[T]], attempts: int = 16) -> T:
        nonlocal asked
        asked += 1
        # The first finds out who the backend is.
        if 1 < asked < 5:
            raise XenError(errno.EAGAIN, "transact", "in conflict")
        return await transact(fn, attempts)

    stage.store.transact = crowded  # type: ignore[method-assign]
    async with stage.connected() as life:
        assert life.connected.is_set()
    assert asked > 5


@acted
async def test_a_backend_that_another_domain_could_write_is_not_trusted(stage: Stage) -> None:
    stage.fake.set_perms(BACK, "n5,r7")
    with pytest.raises(PeerError, match="belongs to domain 5"):
        async with stage.life():
            raise AssertionError
    assert stage.made == []


@acted
async def test_a_backend_that_hides_is_none(stage: Stage) -> None:
    """A guest's own connection, from which the backend hides."""
    path = await stage.fake.listen(DomId(7))
    async with Store.open(path, timeout=2) as store:
        stage.store = store
        stage.fake.set_perms(f"{BACK}/state", "n0")
        with pytest.raises(XenTimeoutError, match="the backend shows UNKNOWN"):
            async with stage.life(timeout=0.2):
                raise AssertionError
        stage.fake.set_perms(BACK, "n0")
        with pytest.raises(PeerError, match="cannot be read"):
            async with stage.life():
                raise AssertionError


@acted
async def test_a_life_that_was_not_entered_says_so(stage: Stage) -> None:
    with pytest.raises(XenError, match="async with"):
        await stage.life().ready(1)
    await stage.life().close()


@acted
async def test_who_gives_up_entering_leaves_nothing(stage: Stage) -> None:
    entering = asyncio.create_task(stage.life().__aenter__())
    await stage.until(f"{FRONT}/state", "3")
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert stage.made[0].calls[-1] == "disconnect"
    assert stage.fake.read(f"{FRONT}/state") == "6"


@acted
async def test_keys_of_another_moment_than_the_state_are_not_used(stage: Stage) -> None:
    """The directory has gone, and is back, between the two looks."""
    look = FrontendNodes.backend_keys
    looks: list[int] = []

    async def gone(self: FrontendNodes) -> Mapping[str, str]:
        looks.append(1)
        return {} if len(looks) % 2 else await look(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrontendNodes, "backend_keys", gone)
        async with stage.connected() as life:
            assert life.phase is XenbusState.CONNECTED
    assert len(looks) >= 4
    assert [call for call in stage.made[0].calls if call != "changed"][:2] == [
        "publish x", "connect x",
    ]  # fmt: skip


def away_while_closed(patch: pytest.MonkeyPatch, stage: Stage, error: XenError) -> None:
    """XenStore does not answer the first who looks whether the backend lets go."""
    look = FrontendNodes.observe
    errors = [error]

    async def observe(self: FrontendNodes) -> XenbusState:
        if errors and stage.fake.get(f"{FRONT}/state") == "6":
            raise errors.pop()
        return await look(self)

    patch.setattr(FrontendNodes, "observe", observe)


AWAY = [XenConnectionError(errno.ECONNRESET, "read"), XenTimeoutError(errno.ETIMEDOUT, "read")]


@pytest.mark.parametrize("error", AWAY)
def test_a_xenstored_that_goes_while_it_closes_keeps_nothing(
    error: XenError, monkeypatch: pytest.MonkeyPatch
) -> None:
    @acted
    async def check(stage: Stage) -> None:
        async with stage.connected() as life:
            away_while_closed(monkeypatch, stage, error)
            stage.fake.write(f"{BACK}/state", "5")
            async with asyncio.timeout(20):
                while stage.made[0].calls[-1] != "disconnect":
                    await asyncio.sleep(0.001)
            assert isinstance(stage.made[0].reason, XenError)
            assert stage.made[0].reason.errno == errno.ESHUTDOWN
            # A disk that was there may come back.
            assert not life.over

    check()


@pytest.mark.parametrize("error", AWAY)
def test_a_xenstored_that_goes_while_a_device_is_refused_keeps_nobody_waiting(
    error: XenError, monkeypatch: pytest.MonkeyPatch
) -> None:
    @acted
    async def check(stage: Stage) -> None:
        away_while_closed(monkeypatch, stage, error)
        entering = asyncio.create_task(stage.life(timeout=20).__aenter__())
        await stage.until(f"{FRONT}/state", "3")
        stage.fake.write(f"{BACK}/state", "5")
        async with asyncio.timeout(10):
            with pytest.raises(XenError, match="the backend closes it"):
                await entering
        assert stage.made[0].calls[-1] == "disconnect"

    check()
