# SPDX-License-Identifier: MIT
"""A backend of bytes: a class with a protocol and a coroutine.

class Echo(StreamBackend):
    protocol = StreamProtocol("echo")

    async def serve(self, stream: ByteStream) -> None:
        while content := await stream.read():
            await stream.write(content)
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Final

from xenpy.attach import NO_SETTINGS
from xenpy.backend import Device, DeviceContext, DeviceError, Keys, open_restricted
from xenpy.byte_stream import ByteStream
from xenpy.driver import Driver
from xenpy.errors import PeerError
from xenpy.flex_ring import FlexRing, parse_interface
from xenpy.own_backend import OwnBackend, call_hook, own_driver
from xenpy.peer_keys import number
from xenpy.ports import Ports
from xenpy.stream_protocol import StreamProtocol
from xenpy.types import GrantRef, Port

__all__ = ["StreamBackend", "stream_driver_of"]

STOP_BOUND: Final = 2.0
"""Seconds that `serve` may take when the frontend has gone."""


class StreamBackend(OwnBackend):
    """One device, and what `OwnBackend` has.

    Attributes:
        protocol: what is spoken.
    """

    protocol: StreamProtocol

    async def serve(self, stream: ByteStream) -> None:
        """Talk to a frontend, from its coming to its going.

        It is cancelled when the frontend has gone and `serve` does not return by itself.  When it
        returns before, the device closes; an exception closes it with an error node.
        """
        raise NotImplementedError


class StreamDevice(Device):
    """A `StreamBackend` as the framework sees it."""

    def __init__(self, context: DeviceContext, backend: StreamBackend) -> None:
        super().__init__(context)
        self._backend = backend
        self._held = ExitStack()
        self._stream: ByteStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._received = self._sent = 0

    async def prepare(self) -> Keys:
        order = self._backend.protocol.max_ring_order
        return {"max-ring-page-order": order, **self._backend.published()}

    async def connect(self, frontend: Mapping[str, str]) -> Keys:
        context, backend = self.context, self._backend
        ref, port = GrantRef(number(frontend, "ring-ref")), Port(number(frontend, "event-channel"))
        with ExitStack() as held:
            grants = held.enter_context(context.xen.open_grants())
            interface = held.enter_context(grants.map(context.domid, [ref]))
            with interface.view() as page:
                refs = parse_interface(bytes(page), backend.protocol.max_ring_order)
            data = held.enter_context(grants.map(context.domid, refs))
            ports = Ports(open_restricted(context.xen, context.domid))
            held.callback(ports.close)
            rings = FlexRing.backend(interface, data)
            stream = ByteStream(*rings, lambda: ports.notify(bound))
            bound = ports.bind(context.domid, port, stream.service)
            self._held = held.pop_all()
        backend.frontend = frontend
        self._stream = stream
        self._task = asyncio.create_task(self._serve(stream), name=context.name)
        return {}

    async def _serve(self, stream: ByteStream) -> None:
        try:
            await self._backend.serve(stream)
            error: Exception = DeviceError("the backend has nothing more to say")
        except (PeerError, OSError, DeviceError) as raised:
            error = raised
        except Exception as raised:
            self.context.log.error("%s", "".join(traceback.format_exception(raised)))
            error = DeviceError(f"{type(raised).__name__}: {raised}")
        if self._task is not None:
            self.context.on_failure(error)

    async def disconnect(self) -> None:
        stream, task = self._stream, self._task
        self._stream = self._task = None
        if stream is None or task is None:
            return
        stream.end()
        # It reads that there is nothing more, and may want to put its things in order.
        await asyncio.wait([task], timeout=STOP_BOUND)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        self._received += stream.received
        self._sent += stream.sent
        self._held.close()

    async def refresh(self) -> Keys:
        return await call_hook(self._backend.reconfigure)

    async def close(self) -> None:
        """Nothing outlives a connection."""

    def stats(self) -> Mapping[str, int]:
        stream = self._stream
        return {
            "received": self._received + (stream.received if stream else 0),
            "sent": self._sent + (stream.sent if stream else 0),
        }


def stream_driver_of(
    make: Callable[[DeviceContext], StreamBackend],
    protocol: StreamProtocol,
    settings: Mapping[str, str] = NO_SETTINGS,
) -> Driver:
    """What `xenpy serve` and `xenpy attach` know a backend by.

    Args:
        make: a backend's class, or what makes one of it.
        settings: of that class.
    """
    return own_driver(protocol.name, settings, lambda context: StreamDevice(context, make(context)))
