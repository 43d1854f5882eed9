# SPDX-License-Identifier: MIT
"""A passive tap lets go of the rings: not under a look, and whatever ends it.

What it sees is in `conformance.tap_suite`.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from xenpy._ffi.types import CData
from xenpy.driver import Peeked
from xenpy.errors import XenConnectionError, XenError, XenPermissionError, XenTimeoutError
from xenpy.passive_tap import PassiveTap
from xenpy.peek import Peeker, PeekLayout
from xenpy.ring import RingLayout
from xenpy.testing.fake_xen import FakeLib, FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.trace import TraceRecord
from xenpy.types import DOM0, GrantRef
from xenpy.xenstore import Store

LAYOUT = PeekLayout(RingLayout(request_size=112, response_size=16), request_id=8, response_id=0)
FRONT = "/local/domain/7/device/echo/3"
BACK = "/local/domain/0/backend/echo/7/3"


class Stage:
    """A device of others, both halves connected, and whoever taps it."""

    def __init__(self, fake: FakeXenstored, store: Store) -> None:
        self.fake = fake
        self.store = store
        self.xen = FakeXen()
        self.share = self.xen.domain(7).open_share()
        self.pages = self.share.share(DOM0, 1)
        for path, keys in (
            (FRONT, {"backend": BACK, "ring-ref": str(self.pages.refs[0])}),
            (BACK, {"frontend": FRONT}),
        ):
            for key, value in {**keys, "state": "4"}.items():
                fake.write(f"{path}/{key}", value)
        self.before = self.xen.census()

    def tap(self) -> PassiveTap:
        def peek(keys: Mapping[str, str]) -> Peeked:
            return Peeked("echo", LAYOUT, [[GrantRef(int(keys["ring-ref"]))]])

        return PassiveTap(self.store, "echo/7/3", peek, 1, self.xen.domain(0).open_grants)

    async def over(self, tap: PassiveTap) -> None:
        async with asyncio.timeout(10):
            await tap.over.wait()
        assert self.xen.census() == self.before
        assert await tap.look() == []

    def close(self) -> None:
        self.pages.close()
        self.share.close()
        self.xen.close()


@asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    async with FakeXenstored() as fake, Store.open(fake.path, timeout=2) as store:
        stage = Stage(fake, store)
        yield stage
        stage.close()


def test_the_rings_stay_as_long_as_a_thread_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks may be cancelled; the thread goes on reading, and would read nothing."""
    look, unmap = Peeker.look, FakeLib.xengnttab_unmap
    looking: list[int] = []
    under_a_look: list[int] = []

    def slowly(self: Peeker, interval: int, until: int) -> list[tuple[int, TraceRecord]]:
        looking.append(1)
        time.sleep(0.02)
        found = look(self, interval, until)
        looking.pop()
        return found

    def watched(self: FakeLib, xgt: CData, start_address: CData, count: int) -> int:
        under_a_look.append(len(looking))
        return unmap(self, xgt, start_address, count)

    monkeypatch.setattr(Peeker, "look", slowly)
    monkeypatch.setattr(FakeLib, "xengnttab_unmap", watched)

    async def main() -> None:
        async with staged() as stage:
            for cancels in (1, 1, 1, 2):
                async with stage.tap() as tap:
                    task = asyncio.create_task(tap.look())
                    while not looking:
                        await asyncio.sleep(0)
                    for _ in range(cancels):
                        task.cancel()
                        await asyncio.sleep(0)
                assert task.cancelled()

    asyncio.run(main())
    assert under_a_look == [0, 0, 0, 0]


def test_the_rings_go_back_when_an_end_goes() -> None:
    async def main() -> None:
        async with staged() as stage, stage.tap() as tap:
            stage.fake.rm(BACK)
            await stage.over(tap)

    asyncio.run(main())


def test_an_end_that_hides_is_not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with staged() as stage, stage.tap() as tap:

            async def hidden(path: str) -> str | None:
                raise XenPermissionError(errno.EACCES, "read", path=path)

            monkeypatch.setattr(stage.store, "get", hidden)
            stage.fake.write(f"{BACK}/state", "4")
            await stage.over(tap)

    asyncio.run(main())


@pytest.mark.parametrize(
    "away", [XenConnectionError(errno.ECONNRESET, "read"), XenTimeoutError(errno.ETIMEDOUT, "read")]
)
def test_a_xenstored_that_is_away_is_waited_for(
    away: XenError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenpy.store_insist.STORE_PAUSE", 0.01)

    async def main() -> None:
        async with staged() as stage, stage.tap() as tap:
            get = stage.store.get
            asked = asyncio.Event()

            async def broken(path: str) -> str | None:
                asked.set()
                raise away

            monkeypatch.setattr(stage.store, "get", broken)
            stage.fake.write(f"{BACK}/state", "5")
            await asked.wait()
            await asyncio.sleep(0.05)
            assert not tap.over.is_set()
            monkeypatch.setattr(stage.store, "get", get)
            await stage.over(tap)

    asyncio.run(main())


def test_the_rings_go_back_when_nobody_can_tell_any_more() -> None:
    """The store is closed, and no state seen from now on."""

    async def main() -> None:
        async with staged() as stage:
            tap = stage.tap()
            await tap.__aenter__()
            await stage.store.close()
            await stage.over(tap)
            with pytest.raises(XenError, match="closed"):
                await tap.__aexit__(None, None, None)

    asyncio.run(main())
