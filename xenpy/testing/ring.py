# SPDX-License-Identifier: MIT
"""Both halves of a protocol of your own, over the fakes or over whatever Xen there is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from xenpy.backend import DeviceContext, Keys
from xenpy.ring_backend import Backend, driver_of
from xenpy.ring_frontend import NOTHING, Connection
from xenpy.ring_protocol import RequestT, ResponseT, RingProtocol
from xenpy.testing.world import World, device, fakes, serving, this_xen

__all__ = ["Pair", "both", "loopback", "pair"]


class Pair(Protocol):
    """What `both` and `loopback` are, for tests that run on either."""

    def __call__(
        self,
        backend: type[Backend[RequestT, ResponseT]],
        make: Callable[[DeviceContext], Backend[RequestT, ResponseT]] | None = None,
        *,
        features: Keys = NOTHING,
        rings: int = 1,
    ) -> AbstractAsyncContextManager[Connection[RequestT, ResponseT]]: ...


@asynccontextmanager
async def pair(
    world: World,
    make: Callable[[DeviceContext], Backend[RequestT, ResponseT]],
    protocol: RingProtocol[RequestT, ResponseT],
    features: Keys = NOTHING,
    rings: int = 1,
) -> AsyncGenerator[Connection[RequestT, ResponseT]]:
    """Serve, make a device, and connect to it; then undo it all."""
    driver = driver_of(make, protocol)
    async with (
        serving(world, driver),
        device(world, driver),
        world.connect(protocol, features=features, rings=rings) as connection,
    ):
        yield connection


@asynccontextmanager
async def both(
    backend: type[Backend[RequestT, ResponseT]],
    make: Callable[[DeviceContext], Backend[RequestT, ResponseT]] | None = None,
    *,
    features: Keys = NOTHING,
    rings: int = 1,
) -> AsyncGenerator[Connection[RequestT, ResponseT]]:
    """Serve a backend in a fake domain 0, and connect to it from a fake guest.

        async with both(EchoBackend) as device:
            assert await device.request(Request(7)) == Response(7, 0)

    Args:
        backend: the class.
        make: makes one, if it is not called with the context alone.
        features: keys that the frontend publishes.
        rings: how many the frontend asks for.

    Raises:
        AssertionError: at the end a page, a mapping or a port is still held.
    """
    async with (
        fakes() as world,
        pair(world, make or backend, backend.spoken(), features, rings) as connection,
    ):
        yield connection


@asynccontextmanager
async def loopback(
    backend: type[Backend[RequestT, ResponseT]],
    make: Callable[[DeviceContext], Backend[RequestT, ResponseT]] | None = None,
    *,
    features: Keys = NOTHING,
    rings: int = 1,
) -> AsyncGenerator[Connection[RequestT, ResponseT]]:
    """As `both`, in `this_xen`.

    Tests that use it are marked `xen`, for `pytest --xen`; the fixture `ring_pair` has both.
    """
    async with (
        this_xen() as world,
        pair(world, make or backend, backend.spoken(), features, rings) as connection,
    ):
        yield connection
