# SPDX-License-Identifier: MIT
"""Worlds to run both halves of a protocol of your own in: the fakes, or whatever Xen there is.

async with fakes() as world, serving(world, DRIVER), device(world, DRIVER):
    async with world.connect(ECHO) as first: ...
    async with world.connect(ECHO) as again: ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from xenpy.attach import NO_SETTINGS, attach, detach, endpoints, refresh
from xenpy.backend import Keys, NativeXen, XenAccess
from xenpy.driver import Driver
from xenpy.frontend import FrontendAccess, NativeFrontend
from xenpy.ring_frontend import NOTHING, Connection, connect
from xenpy.ring_protocol import RequestT, ResponseT, RingProtocol
from xenpy.service import Service
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DOM0, DomId
from xenpy.xenstore import Store

__all__ = ["World", "device", "fakes", "reconfigure", "serving", "this_xen"]

GUEST = DomId(1)
MAPS = Path("/proc/self/maps")


@dataclass(frozen=True)
class World:
    """A store, two domains, and what they hold.

    Attributes:
        backend, frontend: how the halves open their handles; the backend's is domain 0's.
        domid: the frontend's domain.
        mapped: pages of the frontend's that the backend has mapped now.
    """

    store: Store
    backend: XenAccess
    frontend: FrontendAccess
    domid: DomId
    mapped: Callable[[], int]

    def connect(
        self,
        protocol: RingProtocol[RequestT, ResponseT],
        devid: int = 0,
        *,
        features: Keys = NOTHING,
        rings: int = 1,
    ) -> Connection[RequestT, ResponseT]:
        """Connect to a device, as `xenpy.connect` does."""
        return connect(
            protocol, devid, domid=self.domid, features=features, rings=rings, store=self.store,
            xen=self.frontend,
        )  # fmt: skip


@asynccontextmanager
async def fakes() -> AsyncGenerator[World]:
    """A fake domain 0 and a fake guest.

    Raises:
        AssertionError: at the end a page, a mapping or a port is still held.
    """
    xen = FakeXen()
    halves = xen.domain(DOM0), xen.domain(GUEST)
    async with FakeXenstored() as fake, Store.open(fake.path) as store:
        fake.introduce(GUEST)
        yield World(store, *halves, GUEST, lambda: xen.census()["mapped grants"])
    held = {name: count for name, count in xen.census().items() if count}
    xen.close()
    assert not held, f"still held: {held}"


@asynccontextmanager
async def this_xen() -> AsyncGenerator[World]:
    """The Xen that runs: this domain, which is dom0, is its own guest.

    Raises:
        XenNotFoundError: no Xen, or xen-gntalloc is not loaded.
        AssertionError: at the end a page is still mapped or shared.
    """
    before = _mapped("gntdev"), _mapped("gntalloc")
    async with Store.open() as store:
        domid = await store.domid()
        yield World(store, NativeXen(), NativeFrontend(), domid, lambda: _mapped("gntdev"))
    after = _mapped("gntdev"), _mapped("gntalloc")
    assert after == before, f"pages mapped and shared: {after}, before {before}"


def _mapped(name: str) -> int:
    """What this process has mapped of a device: with gntdev, pages of others."""
    return MAPS.read_text().count(f"/dev/xen/{name}")


@asynccontextmanager
async def serving(world: World, driver: Driver) -> AsyncGenerator[None]:
    """Serve every device of a driver here, meanwhile."""
    service = Service(world.store, driver.kind, driver.backend, xen=world.backend)
    task = asyncio.create_task(service.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def device(
    world: World, driver: Driver, devid: int = 0, settings: Mapping[str, str] = NO_SETTINGS
) -> AsyncGenerator[None]:
    """Make a device that somebody serves, then take it away."""
    plan = driver.plan({"devid": str(devid), **settings}, driver.kind)
    ends = await attach(world.store, world.domid, plan)
    try:
        yield
    finally:
        await detach(world.store, ends)


async def reconfigure(
    world: World, driver: Driver, settings: Mapping[str, str], devid: int = 0
) -> None:
    """Give a device other settings, as `xenpy reconfigure` does.

    Raises:
        DeviceError: its backend does not take them.
    """
    plan = driver.plan({"devid": str(devid), **settings}, driver.kind)
    ends = endpoints(world.domid, plan.frontend_kind, plan.backend_kind, plan.devid, DOM0)
    await refresh(world.store, ends, settings)
