# SPDX-License-Identifier: MIT
"""`xenpy proxy` over the fakes: a guest on one side, a model of a backend on the other."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from conformance.block_front import PATIENCE, Blkfront, eventually
from conformance.block_front_suite import Access
from conformance.fake_framework import FakeFramework, env
from conformance.served_disk import SIZE, Served, offers, served
from fences import ROOT
from xenpy.cli.main import EXIT_FAILED, EXIT_USAGE, main
from xenpy.drivers.block.protocol import OP_READ, RSP_ERROR, RSP_OKAY
from xenpy.drivers.block.stores.front import FrontStore
from xenpy.xenstore import NotYet, Reader, Store

__all__ = ["env", "offers", "served"]

DEVID = 51744
ROTATE = f"python,class={ROOT}/docs/howto/rotate_filter.py:Rotate,bits=3"


class Guest:
    """A stock frontend's part, in a thread: connect, act, follow the close."""

    def __init__(self, env: FakeFramework, act: Callable[[Guest], None], *, stuck: bool) -> None:
        self._env = env
        self._act = act
        self._stuck = stuck
        self.proxy_runs = True
        self.error: BaseException | None = None
        domid = env.front_domid
        self.front = f"/local/domain/{domid}/device/vbd/{DEVID}"
        self.back = (
            f"/local/domain/{env.back_domid}/backend/vbd3-proxy-{domid}-{DEVID}/{domid}/{DEVID}"
        )
        self.ring: Blkfront
        self._thread = threading.Thread(target=self._run, name="guest")

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Raises what the guest met."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error

    def write(self, key: str, value: str | int) -> None:
        """As the toolstack: a key of the backend's directory."""

        async def put() -> None:
            async with Store.open(self._env.store_path()) as store:
                await store.write(f"{self.back}/{key}", value)

        asyncio.run(put())

    def start_over(self, served: Served) -> None:
        """The backend behind closes, and is connected anew."""
        held = served.backend.keys
        served.run(served.backend.say(state=5))
        eventually(lambda: served.backend.keys is not held)

    def remove(self) -> None:
        """The toolstack takes both directories away."""

        async def take() -> None:
            async with Store.open(self._env.store_path()) as store:
                await store.rm(self.front)
                await store.rm(self.back)

        asyncio.run(take())

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:
            self.error = error
            if self.proxy_runs:
                interrupt()

    async def _live(self) -> None:
        async with Store.open(self._env.store_path(), timeout=PATIENCE) as store:
            await self._until(store, "2")
            self.ring = Blkfront(self._env, data_pages=4)
            try:
                keys = {**self.ring.keys(), "state": "3"}
                for key in sorted(keys, key="state".__eq__):
                    # The state last: it says that the others are there.
                    await store.write(f"{self.front}/{key}", keys[key])
                await self._until(store, "4")
                await store.write(f"{self.front}/state", "4")
                await asyncio.to_thread(self._act, self)
                await self._until(store, "5", "6", None)
                if not self._stuck and await store.exists(self.front):
                    await store.write(f"{self.front}/state", "6")
                await self._until(store, "6", None)
            finally:
                self.ring.close()

    async def _until(self, store: Store, *states: str | None) -> None:
        async def shows(reader: Reader) -> None:
            if await reader.get(f"{self.back}/state") not in states:
                raise NotYet

        await store.wait(shows, PATIENCE)


def interrupt() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


Proxy = Callable[..., int]


@pytest.fixture
def proxy(
    env: FakeFramework, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Proxy:
    """`xenpy proxy` for a guest that does something."""
    place = env.store_path() or ""
    monkeypatch.setenv("XENSTORED_PATH", place)
    monkeypatch.setattr("xenpy.service.NativeXen", env.back_xen)

    def run(
        *words: str,
        act: Callable[[Guest], None] | None = None,
        stuck: bool = False,
        target: str = served.backend.front,
    ) -> int:
        guest = Guest(env, act, stuck=stuck) if act is not None else None
        if guest is not None:
            guest.start()
        status = main([
            "proxy", "block", str(env.front_domid), f"vdev={DEVID}", f"target={target}",
            "--rundir", str(tmp_path), *words,
        ])  # fmt: skip
        if guest is not None:
            guest.proxy_runs = False
            guest.join()
        return status

    return run


def left(env: FakeFramework) -> list[str]:
    """What is left of the proxy's device."""

    async def look() -> list[str]:
        async with Store.open(env.store_path()) as store:
            home = f"/local/domain/{env.back_domid}/backend"
            found = await store.list(home) if await store.exists(home) else []
            device = f"/local/domain/{env.front_domid}/device/vbd/{DEVID}"
            rest = [name for name in found if "proxy" in name]
            return rest + [device] * await store.exists(device)

    return asyncio.run(look())


def test_what_passes_is_rewritten_behind_and_as_it_was_before(
    proxy: Proxy, env: FakeFramework, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytes(range(256)) * 64
    before = bytes(served.backend.disk)

    def act(guest: Guest) -> None:
        guest.ring.write(8, content)
        assert guest.ring.flush() == RSP_OKAY
        assert guest.ring.read(8, len(content) // 4096) == content
        interrupt()

    assert proxy("--filter", "stats", "--filter", ROTATE, act=act) == 0
    kept = content.translate(bytes((b << 3 | b >> 5) & 255 for b in range(256)))
    start = 8 * 512
    same = bytes(served.backend.disk) == before[:start] + kept + before[start + len(kept) :]
    assert same, "the disk behind is not as the filter has it"
    said = capsys.readouterr()
    domid = env.front_domid
    assert said.out == f"vbd3-proxy-{domid}-{DEVID}/{domid}/{DEVID}\n"
    assert left(env) == []


def test_the_size_is_that_of_the_disk_behind(proxy: Proxy, env: FakeFramework) -> None:
    seen: list[str | None] = []

    def act(guest: Guest) -> None:
        async def look() -> None:
            async with Store.open(env.store_path()) as store:
                for key in ("sectors", "sector-size", "feature-discard"):
                    seen.append(await store.get(f"{guest.back}/{key}"))

        asyncio.run(look())
        interrupt()

    assert proxy(act=act) == 0
    assert seen == [str(SIZE // 512), "512", "1"]


def test_a_guest_that_does_not_let_go_loses_its_disk(
    proxy: Proxy, env: FakeFramework, caplog: pytest.LogCaptureFixture
) -> None:
    assert proxy("--timeout", "4", act=lambda _: interrupt(), stuck=True) == EXIT_FAILED
    assert "does not let go" in caplog.text
    assert left(env) == []


def test_it_ends_when_the_device_is_taken_away(proxy: Proxy, env: FakeFramework) -> None:
    assert proxy(act=Guest.remove) == 0
    assert left(env) == []


def test_a_backend_that_starts_over_is_waited_for(
    proxy: Proxy, env: FakeFramework, served: Served
) -> None:
    def act(guest: Guest) -> None:
        page = guest.ring.whole_pages(1)
        assert guest.ring.status(OP_READ, 0, page) == RSP_OKAY
        guest.start_over(served)
        # Nothing is in flight at that moment; what comes later waits.
        for _ in range(5):
            assert guest.ring.status(OP_READ, 0, page) == RSP_OKAY
        guest.ring.write(8, bytes(4096))
        assert guest.ring.flush() == RSP_OKAY
        interrupt()

    assert proxy(act=act) == 0


def test_a_flush_does_not_vouch_for_what_the_backend_had_before_it_started_over(
    proxy: Proxy, served: Served
) -> None:
    def act(guest: Guest) -> None:
        guest.ring.write(8, bytes(4096))
        assert guest.ring.flush() == RSP_OKAY
        guest.ring.write(8, bytes(4096))
        guest.start_over(served)
        assert guest.ring.flush() == RSP_ERROR
        assert guest.ring.flush() == RSP_ERROR, "a lost write is lost for good"
        interrupt()

    assert proxy(act=act) == 0


def test_what_a_killed_proxy_has_left_is_taken_away(
    proxy: Proxy, env: FakeFramework, caplog: pytest.LogCaptureFixture
) -> None:
    guest = Guest(env, lambda _: None, stuck=False)
    ends = {guest.back: guest.front, guest.front: guest.back}

    async def leave() -> None:
        async with Store.open(env.store_path()) as store:
            for path, other in ends.items():
                end = "frontend" if path == guest.back else "backend"
                keys = {end: other, f"{end}-id": int(env.front_domid), "online": 1, "state": 4}
                for key, value in keys.items():
                    await store.write(f"{path}/{key}", value)

    asyncio.run(leave())
    with caplog.at_level(logging.INFO):
        assert proxy("--timeout", "4", act=lambda _: interrupt()) == 0
    assert "taking away what a proxy before has left" in caplog.text
    assert left(env) == []


def test_it_can_be_ended_while_the_disk_behind_does_not_connect(
    proxy: Proxy, env: FakeFramework, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenpy.drivers.block.stores.front.CONNECT_BOUND", 1.0)
    # It waits for another frontend, and does not see this one.
    monkeypatch.setattr(served.backend, "front", f"{served.backend.front}/other")
    timer = threading.Timer(0.3, interrupt)
    timer.start()
    path = served.backend.front.removesuffix("/other")
    assert proxy("--timeout", "30", target=path) in (0, EXIT_FAILED)
    timer.join()
    assert left(env) == []


def test_a_disk_that_is_taken_away_behind_it_is_an_error_and_the_guest_lives(
    proxy: Proxy, env: FakeFramework, served: Served
) -> None:
    def act(guest: Guest) -> None:
        page = guest.ring.whole_pages(1)
        assert guest.ring.status(OP_READ, 0, page) == RSP_OKAY
        served.run(served.backend.store.rm(served.backend.front))
        eventually(lambda: guest.ring.status(OP_READ, 0, page) == RSP_ERROR)
        assert guest.ring.status(OP_READ, 0, page) == RSP_ERROR
        interrupt()

    assert proxy(act=act) == 0
    assert left(env) == []


def test_an_error_keeps_none_of_the_guest_s_pages(env: FakeFramework, served: Served) -> None:
    path = env.store_path()
    store = FrontStore(served.backend.front, readonly=False, store_path=path, xen=Access(env))
    served.run(served.backend.store.rm(served.backend.front))
    page = bytearray(512)
    view = memoryview(page)

    def failed() -> OSError | None:
        for call in (store.readinto, store.write):
            try:
                call(view, 0)
            except OSError as error:
                kept.append(error)
        return kept[-1] if len(kept) > 2 else None

    kept: list[OSError] = []
    eventually(lambda: failed() is not None)
    store.close()
    view.release()
    # Raises BufferError while anything that the errors hold on to can still see it.
    page.clear()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["block", "1", "vdev=xvdc"], "Give target=xvdb"),
        (["block", "1", "vdev=xvdc", "target=vdb"], "is not a vdev"),
        (["block", "1", "vdev=xvdc", "target=xvdb", "filter=stats", "--filter", "log"], "the same"),
        (["block", "1", "vdev=xvdc", "target=xvdb", "--filter", "python"], "names no class"),
        (["block", "1", "vdev=xvdc", "target=xvdb", "--filter", "lose"], "no filter 'lose'"),
        (["block", "1", "target=xvdb"], "which device?"),
        (["teapot", "1", "target=xvdb"], "no driver 'teapot'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["proxy", *words]) == EXIT_USAGE
    assert part in capsys.readouterr().err


def test_without_a_disk_behind_it_nothing_is_left(
    proxy: Proxy, env: FakeFramework, capsys: pytest.CaptureFixture[str]
) -> None:
    target = f"/local/domain/{env.front_domid}/device/vbd/1"
    assert proxy("--json", target=target) == EXIT_FAILED
    assert f"cannot open xen:{target}" in capsys.readouterr().err
    assert left(env) == []
