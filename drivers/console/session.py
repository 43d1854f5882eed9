# SPDX-License-Identifier: MIT
"""A program's conversation with a guest, on its console.

async with primary(domid) as console:
    console.type("\n")
    await console.until("login: ")
    console.type("root\n")
    print(await console.until("# "))
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from typing import Final

from xenpy.backend import XenAccess
from xenpy.drivers.console.backlog import Backlog
from xenpy.drivers.console.hub import Hub
from xenpy.drivers.console.outlet import Outlet, Typist
from xenpy.drivers.console.primary import Primary
from xenpy.drivers.console.pty_outlet import PtyOutlet
from xenpy.types import DomId
from xenpy.xenstore import Store

__all__ = ["HEARD_LIMIT", "Session", "primary"]

HEARD_LIMIT: Final = 1 << 20
"""Bytes that are kept until somebody asks for them."""


class Session(Outlet):
    """What the guest has printed since, and a way to type."""

    def __init__(self, typist: Typist) -> None:
        self._typist = typist
        self._heard = Backlog(HEARD_LIMIT)
        self._more = asyncio.Event()

    @property
    def lost(self) -> int:
        return self._heard.lost

    @property
    def heard(self) -> bytes:
        """What was printed and not asked for yet."""
        return self._heard.first(len(self._heard))

    def type(self, text: str | bytes) -> None:
        """Type; the guest reads it when it does."""
        self._typist.typed(text.encode() if isinstance(text, str) else text)

    async def until(self, text: str | bytes, timeout: float | None = 60.0) -> bytes:
        """What is printed up to `text`, and `text`; what follows is left for the next call.

        Raises:
            TimeoutError: it did not come within so many seconds.  What came is still `heard`.
        """
        wanted = text.encode() if isinstance(text, str) else text
        async with asyncio.timeout(timeout):
            while (place := self._heard.find(wanted)) < 0:
                self._more.clear()
                await self._more.wait()
        found = self._heard.first(place + len(wanted))
        self._heard.took(len(found))
        return found

    def put(self, content: bytes) -> None:
        self._heard.add(content)
        self._more.set()

    def close(self) -> None:
        """Nothing is held."""


@asynccontextmanager
async def primary(
    domid: DomId | int, store: Store | None = None, xen: XenAccess | None = None
) -> AsyncGenerator[Session]:
    """Take over a guest's first console, talk, and hand it back.  For domain 0.

    `xl console` finds it on a pty of ours meanwhile.  What was typed and the guest has not read
    when this ends is lost, but for what is in the ring.

    Raises:
        XenNotFoundError, XenError, PeerError: as `Primary`.
    """
    if store is None:
        async with Store.open() as opened, primary(domid, opened, xen) as session:
            yield session
        return
    hub = Hub()
    session = Session(hub)
    with closing(hub):
        pty = PtyOutlet(hub)
        hub.outlets += [session, pty]
        async with Primary(store, DomId(domid), hub, pty.name, xen):
            yield session
