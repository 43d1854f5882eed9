# SPDX-License-Identifier: MIT
"""What a backend in a driver domain has to do that dom0's toolstack does for one in dom0."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import pytest

from xenpy.backend import Device, Keys
from xenpy.service import SWEEP_DELAY, Service
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DOM0, DomId
from xenpy.xenstore import Store

PATIENCE = 20.0
DRIVER = DomId(3)
FRONT = "/local/domain/7/device/vlamp/0"


class Lamp(Device):
    """A device that serves nothing."""

    async def prepare(self) -> Keys:
        return {}

    async def connect(self, frontend: Mapping[str, str]) -> Keys:
        return {}

    async def disconnect(self) -> None:
        pass

    async def close(self) -> None:
        pass


@asynccontextmanager
async def serving(domid: DomId) -> AsyncIterator[tuple[Store, str]]:
    """A device of domain 7's, prepared; the store and its directory."""
    back = f"/local/domain/{domid}/backend/vlamp/7/0"
    xen = FakeXen()
    async with FakeXenstored() as fake, Store.open(fake.path) as store, asyncio.timeout(PATIENCE):
        fake.introduce(DomId(7))
        for key, value in (("backend", back), ("backend-id", domid), ("state", 1)):
            await store.write(f"{FRONT}/{key}", value)
        for key, value in (("frontend", FRONT), ("frontend-id", 7), ("online", 1), ("state", 1)):
            await store.write(f"{back}/{key}", value)
        service = Service(store, "vlamp", Lamp, xen=xen.domain(domid), domid=domid)
        task = asyncio.create_task(service.run())
        await until(store, back, "2")
        yield store, back
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    xen.close()


async def until(store: Store, back: str, *states: str | None) -> None:
    while await store.get(f"{back}/state") not in states:
        await asyncio.sleep(0.01)


async def take_away(store: Store, back: str) -> None:
    """As libxl asks for it."""
    await store.write(f"{back}/online", 0)
    await store.write(f"{back}/state", 5)


@pytest.mark.parametrize("domid", [DRIVER, DOM0])
def test_what_is_closed_for_good_is_removed_by_whoever_can(domid: DomId) -> None:
    async def main() -> None:
        async with serving(domid) as (store, back):
            await take_away(store, back)
            await until(store, back, "6")
            loop = asyncio.get_running_loop()
            closed = loop.time()
            if domid == DOM0:
                await asyncio.sleep(2 * SWEEP_DELAY)
                assert await store.get(f"{back}/state") == "6", "libxl's own"
                return
            await until(store, back, None)
            # Not before a toolstack had the time to see it.
            assert loop.time() - closed > SWEEP_DELAY / 2
            assert not await store.exists(back)

    asyncio.run(main())


def test_a_device_made_anew_in_the_meantime_stays() -> None:
    async def main() -> None:
        async with serving(DRIVER) as (store, back):
            await take_away(store, back)
            await until(store, back, "6")
            await store.write(f"{back}/online", 1)
            await store.write(f"{back}/state", 1)
            await until(store, back, "2")
            await asyncio.sleep(2 * SWEEP_DELAY)
            assert await store.get(f"{back}/state") == "2"

    asyncio.run(main())


def test_what_an_earlier_daemon_has_left_is_swept() -> None:
    async def main() -> None:
        async with serving(DRIVER) as (store, back):
            other = back.replace("/7/0", "/7/1")
            for key, value in (("frontend-id", 7), ("online", 0), ("state", 6)):
                await store.write(f"{other}/{key}", value)
            await until(store, other, None)
            assert await store.get(f"{back}/state") == "2"

    asyncio.run(main())
