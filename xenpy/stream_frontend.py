# SPDX-License-Identifier: MIT
"""The frontend of a protocol of bytes.

async with connect_stream(ECHO) as stream:
    await stream.write(b"hello")
    print(await stream.readexactly(5))
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
)

from xenpy.backend import Keys
from xenpy.byte_stream import ByteStream
from xenpy.flex_ring import FlexRing, pack_interface
from xenpy.frontend import Frontend, FrontendAccess, FrontendContext, NativeFrontend
from xenpy.frontend_life import FrontendLife
from xenpy.paths import frontend_path
from xenpy.peer_keys import number
from xenpy.ports import Ports
from xenpy.ring_frontend import NOTHING, TIMEOUT
from xenpy.stream_protocol import StreamProtocol
from xenpy.types import DevId, DomId
from xenpy.xenstore import Store

__all__ = ["ByteFrontend", "connect_stream", "connected"]


class ByteFrontend(Frontend):
    """A driver's half that is bytes either way, as `FrontendLife` sees it; `publish` is left to
    the protocol, which calls `keep` at its end.

    Attributes:
        stream: of the connection that there is, or was.
    """

    def __init__(self, context: FrontendContext) -> None:
        super().__init__(context)
        self.held = ExitStack()
        self.stream: ByteStream | None = None

    def keep(self, stream: ByteStream, held: ExitStack) -> None:
        """From now on there is a connection, and `disconnect` ends it: the stream, which reads what
        is left in its rings, and then all that is held, the rings among it."""
        self.stream, self.held = stream, held.pop_all()

    async def connect(self, backend: Mapping[str, str]) -> None:
        """The rings are there already; what was written is in them."""

    async def drain(self) -> None:
        """The backend reads what is in the rings before it lets go of them."""

    async def disconnect(self, reason: Exception) -> None:
        if self.stream is not None:
            self.stream.end()
        self.held.close()


class StreamFrontend(ByteFrontend):
    """Over ring.h's flex ring."""

    transport_keys = re.compile("ring-ref|event-channel")

    def __init__(self, context: FrontendContext, protocol: StreamProtocol, features: Keys) -> None:
        super().__init__(context)
        self._protocol = protocol
        self._features = features

    async def publish(self, backend: Mapping[str, str]) -> Keys:
        offered = number(backend, "max-ring-page-order")
        order = min(offered, self._protocol.max_ring_order)
        peer, xen = self.context.peer, self.context.xen
        with ExitStack() as held:
            share = held.enter_context(xen.open_share())
            data = held.enter_context(share.share(peer, 1 << order))
            interface = held.enter_context(share.share(peer, 1))
            head = pack_interface(data.refs)
            with interface.view(0, len(head)) as page:
                page[:] = head
            ports = Ports(xen.open_evtchn())
            held.callback(ports.close)
            rings = FlexRing.frontend(interface, data)
            stream = ByteStream(*rings, lambda: ports.notify(port))
            port = ports.listen(peer, stream.service)
            self.keep(stream, held)
        return {
            **self._features,
            "ring-ref": int(interface.refs[0]),
            "event-channel": int(port),
        }


@asynccontextmanager
async def connected(
    make: Callable[[FrontendContext], ByteFrontend],
    kind: str,
    devid: int,
    domid: DomId | None,
    store: Store | None,
    xen: FrontendAccess | None,
    timeout: float,
) -> AsyncGenerator[ByteStream]:
    """Connect to a device of `kind`, as `connect_stream` does, by a driver of one's own."""
    async with AsyncExitStack() as held:
        if store is None:
            store = await held.enter_async_context(Store.open())
        path = frontend_path(await store.domid() if domid is None else domid, kind, DevId(devid))
        life = FrontendLife(store, path, make, xen=xen or NativeFrontend(), timeout=timeout)
        await held.enter_async_context(life)
        assert isinstance(life.device, ByteFrontend)
        assert life.device.stream is not None
        yield life.device.stream


def connect_stream(
    protocol: StreamProtocol,
    devid: int = 0,
    *,
    domid: DomId | None = None,
    features: Keys = NOTHING,
    store: Store | None = None,
    xen: FrontendAccess | None = None,
    timeout: float = TIMEOUT,
) -> AbstractAsyncContextManager[ByteStream]:
    """Connect to a device; arguments and errors as of `xenpy.ring_frontend.connect`.

    A backend that starts over ends the stream: what was under way is lost, and somebody must say
    what to do about that.
    """
    return connected(
        lambda context: StreamFrontend(context, protocol, features),
        protocol.name, devid, domid, store, xen, timeout,
    )  # fmt: skip
