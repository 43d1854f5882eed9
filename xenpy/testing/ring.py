# SPDX-License-Identifier: MIT
"""Both halves of a protocol of your own, over the fakes or over whatever Xen there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from xenpy.attach import attach, detach
from xenpy.backend import DeviceContext, Keys, NativeXen, XenAccess
from xenpy.frontend import FrontendAccess, NativeFrontend
from xenpy.ring_backend import Backend, driver_of
from xenpy.ring_frontend import NOTHING, Connection, connect
from xenpy.ring_protocol import RequestT, ResponseT, RingProtocol
from xenpy.service import Service
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DOM0, DomId
from xenpy.xenstore import Store

__all__ = ["Pair", "both", "loopback", "pair", "why_no_xen"]

GUEST = DomId(1)
GNTALLOC = Path("/dev/xen/gntalloc")


class Pair(Protocol):
    """What `both` and `loopback` are, for tests that run on either."""

    def __call__(
        self,
        backend: type[Backend[RequestT, ResponseT]],
        make: Callable[[DeviceContext], Backend[RequestT, ResponseT]] | None = None,
        *,
        features: Keys = NOTHING,
    ) -> AbstractAsyncContextManager[Connection[RequestT, ResponseT]]: ...


@asynccontextmanager
async def pair(
    make: Callable[[DeviceContext], Backend[RequestT, ResponseT]],
    protocol: RingProtocol[RequestT, ResponseT],
    store: Store,
    backend: XenAccess,
    frontend: FrontendAccess,
    domid: DomId,
    features: Keys = NOTHING,
) -> AsyncGenerator[Connection[RequestT, ResponseT]]:
    """Make a device, serve it here, and connect to it as domain `domid`; then undo it all."""
    driver = driver_of(make, protocol)
    service = Service(store, driver.kind, driver.backend, xen=backend)
    serving = asyncio.create_task(service.run())
    try:
        ends = await attach(store, domid, driver.plan({}, driver.kind))
        try:
            async with connect(
                protocol, domid=domid, features=features, store=store, xen=frontend
            ) as connection:
                yield connection
        finally:
            await detach(store, ends)
    finally:
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


@asynccontextmanager
async def both(
    backend: type[Backend[RequestT, ResponseT]],
    make: Callable[[DeviceContext], Backend[RequestT, ResponseT]] | None = None,
    *,
    features: Keys = NOTHING,
) -> AsyncGenerator[Connection[RequestT, ResponseT]]:
    """Serve a backend in a fake domain 0, and connect to it from a fake guest.

        async with both(EchoBackend) as device:
            assert await device.request(Request(7)) == Response(7, 0)

    Args:
        backend: the class.
        make: makes one, if it is not called with the context alone.
        features: keys that the frontend publishes.

    Raises:
        AssertionError: at the end a page, a mapping or a port is still held.
    """
    xen = FakeXen()
    halves = xen.domain(DOM0), xen.domain(GUEST)
    async with FakeXenstored() as fake, Store.open(fake.path) as store:
        fake.introduce(GUEST)
        async with pair(
            make or backend, backend.spoken(), store, *halves, GUEST, features
        ) as connection:
            yield connection
    held = {name: count for name, count in xen.census().items() if count}
    xen.close()
    assert not held, f"still held: {held}"


@asynccontextmanager
async def loopback(
    backend: type[Backend[RequestT, ResponseT]],
    make: Callable[[DeviceContext], Backend[RequestT, ResponseT]] | None = None,
    *,
    features: Keys = NOTHING,
) -> AsyncGenerator[Connection[RequestT, ResponseT]]:
    """As `both`, on the Xen that runs: this domain, which is dom0, is its own guest.

    Raises:
        XenNotFoundError: no Xen, or xen-gntalloc is not loaded.
    """
    async with Store.open() as store:
        domid, protocol = await store.domid(), backend.spoken()
        halves = NativeXen(), NativeFrontend()
        async with pair(make or backend, protocol, store, *halves, domid, features) as connection:
            yield connection


def why_no_xen() -> str:
    """Why `loopback` cannot be used here, or ""."""
    return "" if GNTALLOC.exists() else f"no {GNTALLOC}: no Xen here, or xen-gntalloc is not loaded"
