# SPDX-License-Identifier: MIT
"""The frontend of a console: what hvc_xen is to a guest, for a program.

async with connect(devid=1) as console:
    await console.write(b"hello\n")
    print(await console.read())
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Final

from xenpy.backend import Keys
from xenpy.drivers.console.protocol import IN_SIZE, ConsoleRing
from xenpy.errors import PeerError
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
    """A stream of bytes either way.  Without a backend, both ends wait for the next one."""

    transport_keys = re.compile("ring-ref|port")

    def __init__(self, context: FrontendContext) -> None:
        super().__init__(context)
        self._held = ExitStack()
        self._turn = asyncio.Event()
        self._heard = bytearray()
        self._unsent = memoryview(b"")
        self._writing = asyncio.Lock()
        self._over: Exception | None = None
        self._ring: ConsoleRing | None = None
        self._connected = False
        self.pages: SharedPages
        self.ports: Ports
        self.port: Port

    async def publish(self, backend: Mapping[str, str]) -> Keys:
        with ExitStack() as held:
            share = held.enter_context(self.context.xen.open_share())
            self.pages = share.share(self.context.peer, 1)
            held.callback(self.pages.close)
            self.ports = Ports(self.context.xen.open_evtchn())
            held.callback(self.ports.close)
            self.port = self.ports.listen(self.context.peer, self._service)
            self._ring = ConsoleRing.frontend(self.pages)
            self._held = held.pop_all()
        self._over = None
        return {"ring-ref": int(self.pages.refs[0]), "port": int(self.port)}

    async def connect(self, backend: Mapping[str, str]) -> None:
        self._connected = True
        self._push()
        self._turn.set()

    async def drain(self) -> None:
        """What was written is in the ring, and the backend reads that before it lets go."""

    async def disconnect(self, reason: Exception) -> None:
        self._ring = None
        self._connected = False
        self._over = reason
        self._turn.set()
        self._held.close()

    async def read(self, limit: int = IN_SIZE) -> bytes:
        """What was typed, at least a byte and at most `limit`.

        Raises:
            PeerError, XenError: the backend has gone, or has put nonsense into the page.
        """
        while not self._heard:
            await self._wait()
        taken = bytes(self._heard[:limit])
        del self._heard[:limit]
        # There is room for more by now, which nobody will tell us of.
        self._service()
        return taken

    async def write(self, content: bytes | memoryview) -> None:
        """Print; returns when all of it is in the ring.  Raises as `read`."""
        async with self._writing:
            self._unsent = memoryview(content)
            try:
                self._push()
                while self._unsent:
                    await self._wait()
            finally:
                self._unsent = memoryview(b"")

    def _push(self) -> int:
        """As much of what is unsent as fits.  Returns how many bytes."""
        ring = self._ring if self._connected else None
        if ring is None or not self._unsent:
            return 0
        try:
            count = ring.write(self._unsent)
        except PeerError as error:
            self.context.on_failure(error)
            return 0
        if count:
            self._unsent = self._unsent[count:]
            self.ports.notify(self.port)
        return count

    async def _wait(self) -> None:
        if self._over is not None:
            raise self._over
        self._turn.clear()
        await self._turn.wait()

    def _service(self) -> int:
        ring = self._ring
        if ring is None:
            return 0
        try:
            # What nobody reads stays in the ring, and whoever types is held up.
            heard = ring.read(IN_SIZE - len(self._heard))
        except PeerError as error:
            self.context.on_failure(error)
            return 0
        if heard:
            self._heard += heard
            self.ports.notify(self.port)
        sent = self._push()
        self._turn.set()
        return len(heard) + sent


@asynccontextmanager
async def connect(
    devid: int = 1,
    *,
    kind: str = KIND,
    domid: DomId | None = None,
    store: Store | None = None,
    xen: FrontendAccess | None = None,
    timeout: float = 10.0,
) -> AsyncGenerator[ConsoleFrontend]:
    """Connect to a console of this domain that the kernel does not have.

    Args:
        devid: which, 1 to 9.
        kind: the directory below `device/`.  Linux takes all that are in `console` for itself.
        domid: whose; None: ours.

    Raises: as `FrontendLife`.
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
        yield life.device
