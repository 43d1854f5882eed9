# SPDX-License-Identifier: MIT
"""One device's life over a fake xenstored, with a driver that only writes down what it is told."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
from collections.abc import Awaitable, Callable, Mapping

import pytest

from xenpy import lifecycle
from xenpy.backend import Device, DeviceContext, DeviceError, Keys
from xenpy.device_nodes import ATTACHED, PARKED, REFRESH, REFRESH_ERROR, REFRESHED
from xenpy.devlog import TokenBucket
from xenpy.errors import PeerError
from xenpy.service import MAX_BACKEND_KEYS, Service
from xenpy.store_pyxs import Op
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored, Request
from xenpy.types import DomId
from xenpy.xenstore import Store

PATIENCE = 20.0
GUEST = DomId(7)
BACK = "/local/domain/0/backend/vtest/7/1"
FRONT = "/local/domain/7/device/vtest/1"


class Recorder(Device):
    """Does nothing, but says what it was asked to do.  Each step but the last lasts until the
    gate is open."""

    def __init__(self, context: DeviceContext, journal: list[str], gate: asyncio.Event) -> None:
        super().__init__(context)
        self.journal = journal
        self.gate = gate

    async def prepare(self) -> Keys:
        self.journal.append("prepare")
        await self.gate.wait()
        return {}

    async def connect(self, frontend: Mapping[str, str]) -> Keys:
        self.journal.append("connect")
        await self.gate.wait()
        return {"answer": 42}

    async def disconnect(self) -> None:
        self.journal.append("stop")
        await self.gate.wait()
        self.journal.append("disconnect")

    async def close(self) -> None:
        self.journal.append("close")


class Growing(Recorder):
    """What it serves is larger each time that it looks; the third time it is gone."""

    async def refresh(self) -> Keys:
        self.journal.append("refresh")
        await self.gate.wait()
        count = self.journal.count("refresh")
        if count == 3:
            raise DeviceError("it has gone")
        return {"size": 100 * count}


class Stuck(Recorder):
    """Its end lasts until the gate is open, and nothing else does."""

    async def prepare(self) -> Keys:
        self.journal.append("prepare")
        return {}

    async def connect(self, frontend: Mapping[str, str]) -> Keys:
        self.journal.append("connect")
        return {}


class Faulty(Recorder):
    """Its programmer has made mistakes."""

    async def refresh(self) -> Keys:
        raise ValueError("a mistake")

    async def connect(self, frontend: Mapping[str, str]) -> Keys:
        if "mistaken" in self.context.backend_keys:
            raise ValueError("a mistake")
        return await super().connect(frontend)


class Losing(Recorder):
    """What its frontend was promised ends with it, one way or another."""

    async def hand_over(self) -> str:
        how = self.context.backend_keys["how"]
        if how == "fails":
            raise OSError(errno.EIO, "the flush failed")
        if how == "hangs":
            await asyncio.Event().wait()
        return "writes are lost"


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

    def make(self, extra: Mapping[str, str] | None = None, state: int = 1) -> None:
        """What libxl writes; the guest's driver is not loaded yet.  Or what a daemon has left,
        whose devices are in another state."""
        back = {"frontend": FRONT, "frontend-id": str(GUEST), "online": "1", **(extra or {})}
        for path, perms, keys in (
            (FRONT, f"n{GUEST},r0", {"state": str(state)}),
            (BACK, f"n0,r{GUEST}", back),
        ):
            self.fake.write(path, "")
            self.fake.set_perms(path, perms)
            for key, value in keys.items():
                self.fake.write(f"{path}/{key}", value)
        self.fake.write(f"{BACK}/state", str(state))

    def show(self, state: int) -> None:
        """The frontend's state."""
        self.fake.write(f"{FRONT}/state", str(state))

    def state(self) -> str | None:
        return self.fake.get(f"{BACK}/state")

    def error(self) -> str | None:
        return self.fake.get("/local/domain/0/error/backend/vtest/7/1/error")

    async def comes_and_goes(self) -> None:
        """A device of this path is served as ever: the daemon is well."""
        self.fake.rm(BACK)
        await self.until(lambda: BACK not in self.service.devices)
        await self.connect()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.005)

    async def reach(self, state: str | None) -> None:
        await self.until(lambda: self.state() == state)

    async def connect(self, extra: Mapping[str, str] | None = None) -> None:
        self.make(extra)
        await self.reach("2")
        self.show(3)
        await self.reach("4")
        self.show(4)


def on_bench(
    test: Callable[[Bench], Awaitable[None]], timeout: float = 5.0, kind: type[Recorder] = Recorder
) -> None:
    """Run `test`; each request to xenstored may take `timeout` seconds."""

    async def main() -> None:
        xen = FakeXen()
        async with FakeXenstored() as fake, Store.open(fake.path, timeout) as store:
            fake.introduce(GUEST)
            service = Service(
                store, "vtest", lambda context: kind(context, bench.journal, bench.gate),
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


@pytest.mark.parametrize("online", ["0", "1"])
def test_what_is_served_is_closed_before_a_last_closed_is_written(online: str) -> None:
    """The toolstack may give the image to another guest as soon as it reads 6."""

    async def test(bench: Bench) -> None:
        at_closed: list[str] = []

        def look(request: Request) -> None:
            if request.op == Op.WRITE and request.payload == f"{BACK}/state\0".encode() + b"6":
                at_closed.extend(bench.journal)

        await bench.connect()
        bench.fake.on_request = look
        bench.fake.write(f"{BACK}/online", online)
        bench.fake.write(f"{BACK}/state", "5")
        bench.show(5)
        bench.show(6)
        await bench.until(lambda: bool(at_closed))
        assert at_closed[-1] == ("close" if online == "0" else "disconnect")

    on_bench(test)


def test_a_device_made_anew_while_it_is_read(caplog: pytest.LogCaptureFixture) -> None:
    """Half of the keys are the old one's, half are the new one's: of no use to anybody."""

    async def test(bench: Bench) -> None:
        left = ["frontend-id", "state"]

        def change(request: Request) -> None:
            if request.op == Op.READ and left and request.payload == f"{BACK}/{left[0]}\0".encode():
                if left.pop(0) == "state":
                    bench.make()
                else:
                    bench.fake.rm(BACK)

        bench.fake.on_request = change
        await bench.connect()
        assert not left
        assert "not served" not in caplog.text

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


def test_a_frontend_that_writes_its_state_again_and_again_is_not_looked_at_each_time() -> None:
    """Each look is four requests to xenstored, which all devices share."""

    async def test(bench: Bench) -> None:
        await bench.connect()
        looks = 0

        def look(request: Request) -> None:
            nonlocal looks
            looks += request.op == Op.READ and request.payload == f"{FRONT}/state\0".encode()

        bench.fake.on_request = look
        for _ in range(300):
            bench.show(4)
            # Time enough for a look at each of them.
            await asyncio.sleep(0.001)
        assert 1 <= looks <= 64
        # What the toolstack asks for waits for nothing.
        bench.fake.write(f"{BACK}/state", "5")
        await bench.reach("5")

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
        assert bench.error() == f"{FRONT} belongs to domain 9, not to 7"

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


# ------------------------------------------------------------------ what is served changes


def ask_again(bench: Bench, token: str) -> None:
    bench.fake.write(f"{BACK}/{REFRESH}", token)


async def answer(bench: Bench, token: str) -> str | None:
    """Wait for the answer to `token`; what went wrong, empty if nothing."""
    await bench.until(lambda: bench.fake.get(f"{BACK}/{REFRESHED}") == token)
    return bench.fake.get(f"{BACK}/{REFRESH_ERROR}")


def writes_of(bench: Bench, *keys: str) -> list[str]:
    """A list that fills with these keys as the backend writes them."""
    seen: list[str] = []

    def look(request: Request) -> None:
        if request.op == Op.WRITE:
            path = request.payload.split(b"\0")[0].decode()
            seen.extend(key for key in keys if path == f"{BACK}/{key}")

    bench.fake.on_request = look
    return seen


def test_a_backend_that_is_asked_to_looks_again_and_tells_the_frontend() -> None:
    """As blkback's xen_vbd_resize does: the keys, then the state, which stays what it is."""

    async def test(bench: Bench) -> None:
        await bench.connect()
        seen = writes_of(bench, "size", "state")
        for turn, token in enumerate(("a", "b"), 1):
            ask_again(bench, token)
            assert await answer(bench, token) == ""
            assert bench.fake.get(f"{BACK}/size") == str(100 * turn)
        assert seen == ["size", "state", "size", "state"]
        assert bench.state() == "4"
        # What has been answered is not done again.
        ask_again(bench, "b")
        bench.show(4)
        await asyncio.sleep(0.05)
        assert bench.journal == ["prepare", "connect", "refresh", "refresh"]
        ask_again(bench, "c")
        assert await answer(bench, "c") == "it has gone"
        assert seen[4:] == ["state"]
        assert bench.state() == "4"
        await bench.comes_and_goes()

    on_bench(test, kind=Growing)


def test_a_frontend_that_is_not_there_yet_will_read_the_new_keys() -> None:
    async def test(bench: Bench) -> None:
        bench.make()
        await bench.reach("2")
        ask_again(bench, "a")
        assert await answer(bench, "a") == ""
        assert (bench.fake.get(f"{BACK}/size"), bench.state()) == ("100", "2")

    on_bench(test, kind=Growing)


def test_a_state_of_the_toolstack_s_is_not_overwritten() -> None:
    """It asks for a close while the backend looks."""

    async def test(bench: Bench) -> None:
        await bench.connect()
        bench.gate.clear()
        ask_again(bench, "a")
        await bench.until(lambda: "refresh" in bench.journal)
        bench.fake.write(f"{BACK}/state", "5")
        bench.gate.set()
        assert await answer(bench, "a") == ""
        assert bench.state() == "5"
        bench.show(6)
        await bench.reach("6")

    on_bench(test, kind=Growing)


def test_a_store_that_does_not_answer_holds_up_its_device_for_so_long_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifecycle, "DISCONNECT_BOUND", 0.05)

    async def test(bench: Bench) -> None:
        await bench.connect()
        bench.gate.clear()
        ask_again(bench, "a")
        assert await answer(bench, "a") == "the store does not answer"
        bench.gate.set()
        bench.show(5)
        await bench.reach("5")

    on_bench(test, kind=Growing)


def test_a_driver_that_cannot_look_again_says_so() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        ask_again(bench, "a")
        assert await answer(bench, "a") == "vtest has nothing that could change"
        assert bench.state() == "4"

    on_bench(test)


def test_a_driver_s_mistake_when_it_looks_again_costs_the_answer_only() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        ask_again(bench, "once")
        assert await answer(bench, "once") == "a mistake"
        assert bench.state() == "4"
        await bench.comes_and_goes()

    on_bench(test, kind=Faulty)


# ------------------------------------------------------------------ from one daemon to the next


async def parked(bench: Bench) -> bool:
    """Park the device; whether that was possible, which must show in its nodes as well."""
    left = await bench.service.park(PATIENCE)
    assert bench.fake.get(f"{BACK}/{PARKED}") == (None if left else "1")
    assert bench.state() == ("5" if left else "4")
    assert (bench.error() is None) is not bool(left)
    return not left


def test_a_device_is_parked_as_it_is() -> None:
    async def test(bench: Bench) -> None:
        await bench.connect()
        assert await parked(bench)

    on_bench(test)


@pytest.mark.parametrize("late", [False, True])
def test_a_device_that_has_failed_is_not_parked(late: bool) -> None:
    """The next daemon could not tell which requests are outstanding."""

    async def test(bench: Bench) -> None:
        await bench.connect()
        life = bench.service.devices[BACK]
        bench.gate.clear()
        if not late:
            life.park()
            life.context.on_failure(OSError(errno.EIO, "the worker was ended"))
        parking = asyncio.create_task(parked(bench))
        await bench.until(lambda: "stop" in bench.journal)
        if late:
            life.context.on_failure(OSError(errno.EIO, "the worker was ended"))
        bench.gate.set()
        assert not await parking
        assert "the worker was ended" in (bench.error() or "")

    on_bench(test)


@pytest.mark.parametrize(
    ("how", "text"),
    [("tells", "writes are lost"), ("fails", "the flush failed"), ("hangs", "does not answer")],
)
def test_a_device_that_has_lost_something_is_not_parked(
    how: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guest would never hear of it."""
    monkeypatch.setattr(lifecycle, "DISCONNECT_BOUND", 0.2)

    async def test(bench: Bench) -> None:
        await bench.connect({"how": how})
        assert not await parked(bench)
        assert text in (bench.error() or "")

    on_bench(test, kind=Losing)


def test_a_driver_s_mistake_when_it_takes_a_device_over_closes_it() -> None:
    async def test(bench: Bench) -> None:
        bench.make({PARKED: "1", "mistaken": "1"}, state=4)
        await bench.reach("5")
        assert bench.error() == "a mistake"
        bench.show(6)
        await bench.reach("6")

    on_bench(test, kind=Faulty)


# ------------------------------------------------------------------ what goes wrong half-way


def test_a_failure_of_a_connection_that_is_over_says_nothing_about_the_next() -> None:
    """The last look at a ring whose guest has started over finds anything in it."""

    async def test(bench: Bench) -> None:
        await bench.connect()
        life = bench.service.devices[BACK]
        bench.gate.clear()
        bench.show(1)
        await bench.until(lambda: "stop" in bench.journal)
        life.context.on_failure(PeerError("req_prod is out of bounds"))
        bench.gate.set()
        await bench.reach("2")
        bench.show(3)
        await bench.until(lambda: bench.state() != "2")
        assert bench.state() == "4"
        assert bench.error() is None

    on_bench(test)


def test_a_device_made_anew_at_once_is_taken_up_when_the_old_one_drains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No event tells of it: the old one seemed to close as any other when the new one came."""
    monkeypatch.setattr(lifecycle, "DISCONNECT_BOUND", 0.2)
    monkeypatch.setattr("xenpy.service.RETRY_DEFERRED", 0.05)

    async def test(bench: Bench) -> None:
        await bench.connect()
        bench.gate.clear()
        bench.fake.rm(BACK)
        bench.make()
        await bench.until(lambda: bench.journal.count("prepare") == 2)
        assert "disconnect" not in bench.journal

    on_bench(test)


@pytest.mark.parametrize("broken", [False, True])
def test_a_device_made_anew_while_the_old_one_drains_is_not_the_old_one_s_any_more(
    broken: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one has got as far as Connected when the old one has drained: a Closed would be a
    lie, and a look at what the frontend does now would make two backends of one ring."""
    monkeypatch.setattr(lifecycle, "DISCONNECT_BOUND", 0.02)
    caplog.set_level(logging.INFO)

    async def test(bench: Bench) -> None:
        await bench.connect()
        old = bench.service.devices[BACK]
        bench.gate.clear()
        if broken:
            old.context.on_failure(PeerError("req_prod is out of bounds"))
        else:
            bench.show(5)
            await bench.reach("5")
            bench.show(6)
        await bench.until(lambda: old.draining)
        # The operator need not wait for why.
        assert ("req_prod is out of bounds" in caplog.text) is broken
        bench.fake.rm(BACK)
        await bench.connect()
        assert bench.journal.count("connect") == 2
        bench.gate.set()
        await bench.until(lambda: "made it anew under the same path" in caplog.text)
        assert bench.state() == "4"
        assert bench.error() is None
        assert bench.journal.count("connect") == 2

    on_bench(test, kind=Stuck)


def test_a_device_made_anew_while_the_old_one_connects_is_not_taken_for_it() -> None:
    """X8: Connected, and the old one's keys, would be a lie about the new one."""

    async def test(bench: Bench) -> None:
        bench.make()
        await bench.reach("2")
        bench.gate.clear()
        bench.show(3)
        await bench.until(lambda: "connect" in bench.journal)
        bench.fake.rm(BACK)
        bench.make()
        bench.gate.set()
        await bench.until(lambda: bench.journal.count("prepare") == 2)
        await bench.reach("2")
        assert bench.journal[2:] == ["stop", "disconnect", "close", "prepare"]
        assert bench.fake.get(f"{BACK}/answer") is None

    on_bench(test)


def test_a_frontend_that_gives_up_while_it_is_connected_sees_no_connected() -> None:
    """It would take the state that is written for its old rings for that of its new ones."""

    async def test(bench: Bench) -> None:
        bench.make()
        await bench.reach("2")
        bench.gate.clear()
        bench.show(3)
        await bench.until(lambda: "connect" in bench.journal)
        bench.show(6)
        bench.show(1)
        bench.gate.set()
        await bench.until(lambda: "disconnect" in bench.journal)
        assert bench.state() == "2"
        assert bench.fake.get(f"{BACK}/answer") is None
        bench.show(3)
        await bench.reach("4")

    on_bench(test)


def test_a_frontend_that_starts_over_while_connected_is_written_is_connected_anew() -> None:
    """Between the last look at its keys and the write of our state."""

    async def test(bench: Bench) -> None:
        def start_over(request: Request) -> None:
            if request.op == Op.WRITE and request.payload == f"{BACK}/state\0".encode() + b"4":
                bench.fake.on_request = None
                bench.show(1)
                bench.fake.write(f"{FRONT}/ring-ref", "9")
                bench.show(3)

        bench.make()
        await bench.reach("2")
        bench.fake.on_request = start_over
        bench.show(3)
        await bench.reach("4")
        assert bench.journal[1:] == ["connect", "stop", "disconnect", "connect"]

    on_bench(test)


def test_a_device_made_anew_while_the_old_one_opens_is_not_taken_for_it() -> None:
    """The first image may take long to open; what is served must be what is asked for now."""

    async def test(bench: Bench) -> None:
        bench.gate.clear()
        bench.make({"params": "/slow.img"})
        await bench.until(lambda: "prepare" in bench.journal)
        bench.fake.rm(BACK)
        bench.make({"params": "/other.img"})
        bench.gate.set()
        await bench.reach("2")
        assert bench.journal == ["prepare", "stop", "disconnect", "close", "prepare"]
        assert bench.service.devices[BACK].context.backend_keys["params"] == "/other.img"

    on_bench(test)


@pytest.mark.parametrize("shown", [[], [3, 4], [3, 4, 5, 6]], ids=str)
def test_nodes_that_attach_made_go_with_their_domain(shown: list[int]) -> None:
    """X9: whatever the frontend's driver had come to, nobody else removes them."""

    async def test(bench: Bench) -> None:
        bench.make({ATTACHED: "1"})
        await bench.reach("2")
        for state in shown:
            bench.show(state)
            await bench.reach({3: "4", 4: "4", 5: "5", 6: "6"}[state])
        bench.fake.release_domain(GUEST)
        await bench.reach(None)
        await bench.until(lambda: BACK not in bench.service.devices)
        assert bench.journal[-1] == "close"

    on_bench(test)


def test_nodes_that_attach_made_go_although_their_domain_died_unseen() -> None:
    """Nobody served the device when the domain died."""

    async def test(bench: Bench) -> None:
        bench.fake.release_domain(GUEST)
        bench.make({ATTACHED: "1"})
        await bench.reach(None)

    on_bench(test)


@pytest.mark.parametrize(
    ("number", "op", "path"),
    [
        (errno.ENOSPC, Op.WRITE, None),
        (errno.ENOSPC, Op.TRANSACTION_START, None),
        (errno.EACCES, Op.READ, f"{BACK}/state"),
    ],
    ids=["no quota", "no transactions", "no right"],
)
def test_a_device_that_xenstored_refuses_to_serve_is_let_go(
    number: int, op: Op, path: str | None
) -> None:
    """X6: it costs the device, all of it, and neither the daemon nor a turn more."""

    async def test(bench: Bench) -> None:
        await bench.connect()
        bench.fake.inject(number, op=op, path=path, count=math.inf)
        bench.show(6)
        await bench.until(lambda: BACK not in bench.service.devices)
        assert bench.journal[-1] == "close"
        turns = len(bench.journal)
        bench.show(1)
        await asyncio.sleep(0.05)
        assert len(bench.journal) == turns
        bench.fake.heal()
        await bench.comes_and_goes()

    on_bench(test)


def test_a_connection_lost_while_a_device_is_taken_up_is_no_end() -> None:
    """X7: xenstored may be restarted between any two questions."""

    async def test(bench: Bench) -> None:
        def cut(request: Request) -> None:
            if request.op == Op.READ and request.payload.startswith(BACK.encode()):
                bench.fake.on_request = None
                bench.fake.cut()

        bench.fake.on_request = cut
        await bench.connect()

    on_bench(test)


def test_a_xenstored_that_is_slow_to_arm_a_watch_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """X7: a stopped xenstored that goes on is as good as one that never stopped."""

    async def test(bench: Bench) -> None:
        def stop(request: Request) -> None:
            if request.op == Op.WATCH and request.payload.startswith(FRONT.encode()):
                bench.fake.on_request = None
                bench.fake.hold()
                bench.fake.mangle = lambda _: b""

        bench.fake.on_request = stop
        bench.make()
        await bench.until(lambda: "again" in caplog.text)
        bench.fake.mangle = None
        bench.fake.release()
        await bench.reach("2")
        bench.show(3)
        await bench.reach("4")

    on_bench(test, timeout=0.2)


def test_a_directory_that_is_no_device_costs_no_other() -> None:
    async def test(bench: Bench) -> None:
        bench.make({f"junk-{number}": "x" for number in range(MAX_BACKEND_KEYS)})
        await bench.until(lambda: bench.fake.get(f"{BACK}/junk-0") == "x")
        await asyncio.sleep(0.05)
        assert bench.state() == "1"
        await bench.comes_and_goes()

    on_bench(test)


def test_a_driver_that_cannot_be_made_costs_its_device_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(bench: Bench) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Recorder, "__init__", lambda *_: {}["no such key"])
            bench.make()
            await asyncio.sleep(0.05)
        await bench.comes_and_goes()

    on_bench(test)
