# SPDX-License-Identifier: MIT
"""Both halves of a protocol of bytes, over the fakes or over whatever Xen there is."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from xenpy.byte_stream import ByteStream
from xenpy.stream_backend import StreamBackend, stream_driver_of
from xenpy.stream_frontend import connect_stream
from xenpy.testing.world import World, device, fakes, serving, this_xen

__all__ = ["Streams", "both", "loopback"]


class Streams(Protocol):
    """What `both` and `loopback` are, for tests that run on either."""

    def __call__(self, backend: type[StreamBackend]) -> AbstractAsyncContextManager[ByteStream]: ...


@asynccontextmanager
async def both(backend: type[StreamBackend]) -> AsyncGenerator[ByteStream]:
    """Serve a backend in a fake domain 0, and connect to it from a fake guest.

    Raises:
        AssertionError: at the end a page, a mapping or a port is still held.
    """
    async with fakes() as world, _connected(world, backend) as stream:
        yield stream


@asynccontextmanager
async def loopback(backend: type[StreamBackend]) -> AsyncGenerator[ByteStream]:
    """As `both`, in `this_xen`."""
    async with this_xen() as world, _connected(world, backend) as stream:
        yield stream


@asynccontextmanager
async def _connected(world: World, backend: type[StreamBackend]) -> AsyncGenerator[ByteStream]:
    protocol = backend.protocol
    driver = stream_driver_of(backend, protocol)
    async with (
        serving(world, driver),
        device(world, driver),
        connect_stream(
            protocol, domid=world.domid, store=world.store, xen=world.frontend
        ) as stream,
    ):
        yield stream
