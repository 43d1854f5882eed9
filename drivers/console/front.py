# SPDX-License-Identifier: MIT
"""The frontend of a console: what hvc_xen is to a guest, for a program.

async with connect(devid=1) as console:
    await console.write(b"hello\n")
    print(await console.read())
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Final

from xenpy.backend import Keys
from xenpy.byte_stream import ByteStream
from xenpy.drivers.console.protocol import ConsoleRing
from xenpy.frontend import Frontend, FrontendAccess, FrontendContext, NativeFrontend
from xenpy.frontend_life import FrontendLife
from xenpy.gnttab import SharedPages
from xenpy.paths import frontend_path
from xenpy.ports import Ports
from xenpy.types import DevId, DomId, Port
from xenpy.xenstore import Store

__all__ = ["ConsoleFrontend", "connect"]

KIND: Final = "console"


class ConsoleFrontend(Frontend):
    """The driver's half as `FrontendLife` sees it.

    Attributes:
        stream: of the connection that there is, or was.
    """

    transport_keys = re.compile("ring-ref|port")

    def __init__(self, context: FrontendContext) -> None:
        super().__init__(context)
        self._held = ExitStack()
        self.stream: ByteStream | None = None
        self.pages: SharedPages
        self.ports: Ports
        self.port: Port

    async def publish(self, backend: Mapping[str, str]) -> Keys:
        peer, xen = self.context.peer, self.context.xen
        with ExitStack() as held:
            share = held.enter_context(xen.open_share())
            self.pages = held.enter_context(share.share(peer, 1))
            self.ports = Ports(xen.open_evtchn())
            held.callback(self.ports.close)
            rings = ConsoleRing.frontend(self.pages)
            stream = ByteStream(*rings, lambda: self.ports.notify(self.port))
            self.port = self.ports.listen(peer, stream.service)
            self.stream = stream
            self._held = held.pop_all()
        return {"ring-ref": int(self.pages.refs[0]), "port": int(self.port)}

    async def connect(self, backend: Mapping[str, str]) -> None:
        """The rings are there already; what was written is in them."""

    async def drain(self) -> None:
        """The backend reads what is in the rings before it lets go of them."""

    async def disconnect(self, reason: Exception) -> None:
        if self.stream is not None:
            self.stream.end()
        self._held.close()


@asynccontextmanager
async def connect(
    devid: int = 1,
    *,
    kind: str = KIND,
    domid: DomId | None = None,
    store: Store | None = None,
    xen: FrontendAccess | None = None,
    timeout: float = 10.0,
) -> AsyncGenerator[ByteStream]:
    """Connect to a console of this domain that the kernel does not have.

    A backend that starts over ends the stream.  Raises as `FrontendLife`.

    Args:
        devid: which, 1 to 9.
        kind: the directory below `device/`.  Linux takes all that are in `console` for itself.
        domid: whose; None: ours.
    """
    async with AsyncExitStack() as held:
        if store is None:
            store = await held.enter_async_context(Store.open())
        path = frontend_path(await store.domid() if domid is None else domid, kind, DevId(devid))
        life = FrontendLife(
            store, path, ConsoleFrontend, xen=xen or NativeFrontend(), timeout=timeout
        )
        await held.enter_async_context(life)
        assert isinstance(life.device, ConsoleFrontend)
        assert life.device.stream is not None
        yield life.device.stream
