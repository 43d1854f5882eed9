# SPDX-License-Identifier: MIT
"""The first console of a guest, taken over from xenconsoled and handed back.

It is no device: the toolstack makes page and port before the guest runs, and xenconsoled
serves it as long as `/local/domain/DOMID/console/type` says so (console_create_ring of
tools/console/daemon/io.c).  Nothing is lost on the way: what one server has read it has passed
on, and all else is in the rings, where the next one goes on.
"""

from __future__ import annotations

import asyncio
import errno
import time
from types import TracebackType
from typing import Final, Self

from xenpy.backend import NativeXen, XenAccess
from xenpy.drivers.console.hub import Hub
from xenpy.drivers.console.link import Link
from xenpy.drivers.console.protocol import RESERVED_CONSOLE
from xenpy.errors import XenError, XenNotFoundError
from xenpy.paths import domain_path
from xenpy.peer_keys import number
from xenpy.types import DomId, Port
from xenpy.xenstore import NotYet, Reader, Store, Transaction

__all__ = ["OURS", "THEIRS", "Primary", "console_path", "exists", "give_back"]

THEIRS: Final = "xenconsoled"
OURS: Final = "xenpy"
"""What `type` says: who is to serve it."""
NO_PORT: Final = 0
"""A `port` that nobody can bind: given it, xenconsoled lets go of the one it has."""
SAVED: Final = "xenpy-saved-"
"""`xenpy-saved-port` and `xenpy-saved-tty` are what `port` and `tty` were: enough to hand a
console back whose taker was killed, at whatever moment."""
LET_GO: Final = 10.0
"""Seconds that xenconsoled may take: one loop serves all guests."""
POLL: Final = 0.02


def console_path(domid: DomId) -> str:
    """The directory of a guest's first console."""
    return f"{domain_path(domid)}/console"


async def exists(reader: Reader, domid: DomId) -> None:
    """For `Store.wait`: until the toolstack has made a guest's first console."""
    for key in ("ring-ref", "port", "type"):
        if await reader.get(f"{console_path(domid)}/{key}") is None:
            raise NotYet


class Primary:
    """A guest's first console, served by this process; an async context manager.

    It needs the rights of domain 0, whose the nodes are.

    Args:
        store, domid: whose console.
        hub: gets what is printed, has what is typed; outlives this.
        tty: where to tell `xl console` to look, the name of a pty's slave; None: nowhere new.
        xen: how handles are opened.

    Raises (on entering):
        XenNotFoundError: there is no such guest, or it has no console.
        XenError: EBUSY, whoever serves the console does not let go of it.  It is as it was.
        PeerError: the nodes make no sense.
    """

    def __init__(
        self,
        store: Store,
        domid: DomId,
        hub: Hub,
        tty: str | None = None,
        xen: XenAccess | None = None,
    ) -> None:
        self._store = store
        self._domid = domid
        self._hub = hub
        self._tty = tty
        self._xen = xen if xen is not None else NativeXen()
        self._path = console_path(domid)
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._link: Link

    async def __aenter__(self) -> Self:
        port, taken = await self._store.transact(self._ask_to_let_go)
        try:
            self._link = await self._bind(port)
            try:
                await self._store.transact(lambda tx: self._claim(tx, port))
            except BaseException:
                self._link.close()
                raise
        except BaseException:
            if not taken:
                await give_back(self._store, self._domid)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._link.close()
        await give_back(self._store, self._domid)

    async def ended(self) -> None:
        """Return when the guest has gone.

        Raises:
            PeerError: it has put nonsense into the page.
        """
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait([gone, self._broken], return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                self._broken.result()
            else:
                gone.result()
        finally:
            gone.cancel()

    async def _gone(self) -> None:
        async with self._store.watch("@releaseDomain") as watch:
            async for _ in watch:
                if not await self._store.is_domain_introduced(self._domid):
                    return

    async def _ask_to_let_go(self, tx: Transaction) -> tuple[Port, bool]:
        """The port, and whether somebody has taken the console before us: one who was killed,
        and let go of it thereby, or one who still has it, and keeps it."""
        saved = await tx.get(f"{self._path}/{SAVED}port")
        if saved is not None:
            return Port(number({"port": saved}, "port")), True
        values = {key: await tx.get(f"{self._path}/{key}") for key in ("port", "tty")}
        port = values["port"]
        if port is None:
            raise XenNotFoundError(
                errno.ENOENT, "console", "no such guest, or it has no console", domid=self._domid
            )
        remote = Port(number({"port": port}, "port"))
        for key, value in values.items():
            await tx.write(f"{self._path}/{SAVED}{key}", value or "")
        await tx.write(f"{self._path}/port", NO_PORT)
        return remote, False

    async def _bind(self, port: Port) -> Link:
        """Until whoever has the port lets go of it; Xen says EINVAL as long as it is bound."""
        deadline = time.monotonic() + LET_GO
        while True:
            try:
                return Link(self._hub, self._xen, self._domid, RESERVED_CONSOLE, port, self._fail)
            except XenError as error:
                if error.errno != errno.EINVAL:
                    raise
                if time.monotonic() >= deadline:
                    hint = "whoever serves it does not let go; is that another xenpy?"
                    raise XenError(errno.EBUSY, "console", hint, domid=self._domid) from error
            await asyncio.sleep(POLL)

    async def _claim(self, tx: Transaction, port: Port) -> None:
        # `type` before `port`, or xenconsoled would take it back.
        await tx.write(f"{self._path}/type", OURS)
        await tx.write(f"{self._path}/port", int(port))
        if self._tty is not None:
            await tx.write(f"{self._path}/tty", self._tty)

    def _fail(self, error: Exception) -> None:
        if not self._broken.done():
            self._broken.set_exception(error)
            # Whoever is not asking whether it has ended need not hear of it.
            self._broken.exception()


async def give_back(store: Store, domid: DomId) -> bool:
    """Let xenconsoled serve a guest's first console again.  Returns whether it had been taken.

    For a console whose taker still runs this takes it away from under it: stop that first.
    """
    path = console_path(domid)

    async def write(tx: Transaction) -> bool:
        saved = {key: await tx.get(f"{path}/{SAVED}{key}") for key in ("port", "tty")}
        if saved["port"] is None:
            return False
        # xenconsoled keeps its pty, and does not say again which that is.
        for key, value in (("type", THEIRS), ("tty", saved["tty"]), ("port", saved["port"])):
            await tx.write(f"{path}/{key}", value or "")
        for key in saved:
            await tx.rm(f"{path}/{SAVED}{key}")
        return True

    return await store.transact(write)
