# SPDX-License-Identifier: MIT
"""The first console of a guest, taken over from xenconsoled and handed back.

It is no device: the toolstack makes page and port before the guest runs, and xenconsoled
serves it as long as `type` says so (`primary_nodes`).  Of what the guest prints nothing is lost
on the way: what one server has read it has passed on, and all else is in the rings, where the
next one goes on.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import time
from types import TracebackType
from typing import Final, Self

from xenpy.backend import NativeXen, XenAccess
from xenpy.drivers.console.hub import Hub
from xenpy.drivers.console.link import Link
from xenpy.drivers.console.primary_nodes import OWNER, Nodes, ask, claim, console_path, restore
from xenpy.drivers.console.protocol import RESERVED_CONSOLE
from xenpy.drivers.console.their_tty import silence, speak
from xenpy.errors import XenError
from xenpy.store_insist import insist
from xenpy.types import DomId, Port
from xenpy.xenstore import Store

__all__ = ["Primary", "give_back"]

log = logging.getLogger(__name__)

LET_GO: Final = 10.0
"""Seconds that xenconsoled may take, one loop for all guests; and XenStore, to take it back."""
POLL: Final = 0.02


class Primary:
    """A guest's first console, served by this process; an async context manager.

    It needs the rights of domain 0, whose the nodes are.

    Args:
        store, domid: whose console.
        hub: gets what is printed, has what is typed; outlives this.
        tty: where `xl console` is to look, the name of a pty's slave.  None leaves it where it
            looks now, at a pty of xenconsoled's which stands still meanwhile.
        xen: how handles are opened.

    Entering raises what is listed here.

    Raises:
        XenNotFoundError: there is no such guest, or it has no console.
        XenError: EBUSY, whoever serves the console does not let go of it, and it is as it was;
            EOPNOTSUPP, it is not xenconsoled's.
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
        self._owner = secrets.token_hex(8)
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._link: Link | None = None

    async def __aenter__(self) -> Self:
        deadline = time.monotonic() + LET_GO
        try:
            while not await self._take():
                if time.monotonic() >= deadline:
                    hint = "whoever serves it does not let go; is that another xenpy?"
                    raise XenError(errno.EBUSY, "console", hint, domid=self._domid)
                await asyncio.sleep(POLL)
        except BaseException:
            await self._let_go()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._let_go()

    async def _take(self) -> bool:
        """One attempt."""
        nodes = await Nodes.read(self._store, self._domid)
        link = self._bind(nodes.port)
        if link is None:
            if nodes.owner is None:
                await self._ask(nodes.tty)
            return False
        self._link = link
        if await self._store.transact(
            lambda tx: claim(tx, self._domid, nodes.port, self._owner, self._tty)
        ):
            return True
        link.close()
        return False

    async def _ask(self, tty: str) -> None:
        await silence(tty)
        try:
            await self._store.transact(lambda tx: ask(tx, self._domid, self._owner))
        except BaseException:
            speak(tty)
            raise

    def _bind(self, port: Port) -> Link | None:
        """None if somebody else has it: Xen says EINVAL as long as it is bound."""
        try:
            return Link(self._hub, self._xen, self._domid, RESERVED_CONSOLE, port, self._fail)
        except XenError as error:
            if error.errno != errno.EINVAL:
                raise
            return None

    async def _let_go(self) -> None:
        """Close, and hand it back: all of that, even if we are cancelled meanwhile."""
        handing = asyncio.ensure_future(self._hand_back())
        cancelled: asyncio.CancelledError | None = None
        while not handing.done():
            try:
                await asyncio.shield(handing)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def _hand_back(self) -> None:
        try:
            if self._link is not None:
                self._link.close()
        finally:
            try:
                async with asyncio.timeout(LET_GO):
                    await insist(lambda: give_back(self._store, self._domid, self._owner), log)
            except OSError as error:
                # Also a TimeoutError.  `xenpy console give-back` does it later.
                log.error("console %d is not handed back: %s", self._domid, error)

    async def ended(self) -> None:
        """Return when the guest has gone, or its console.

        Raises:
            PeerError: it has put nonsense into the page.
            XenError: EBUSY, somebody else has taken it.
        """
        watching = [
            asyncio.ensure_future(insist(watch, log)) for watch in (self._gone, self._taken_away)
        ]
        try:
            done, _ = await asyncio.wait(
                [*watching, self._broken], return_when=asyncio.FIRST_COMPLETED
            )
            for one in done:
                one.result()
        finally:
            for one in watching:
                one.cancel()

    async def _gone(self) -> None:
        async with self._store.watch("@releaseDomain") as watch:
            async for _ in watch:
                if not await self._store.is_domain_introduced(self._domid):
                    return

    async def _taken_away(self) -> None:
        path = f"{console_path(self._domid)}/{OWNER}"
        async with self._store.watch(path) as watch:
            async for _ in watch:
                owner = await self._store.get(path)
                if owner is None:
                    return
                if owner != self._owner:
                    raise XenError(errno.EBUSY, "console", "another has it", domid=self._domid)

    def _fail(self, error: Exception) -> None:
        if not self._broken.done():
            self._broken.set_exception(error)
            # Whoever is not asking whether it has ended need not hear of it.
            self._broken.exception()


async def give_back(
    store: Store, domid: DomId, owner: str | None = None, xen: XenAccess | None = None
) -> bool:
    """Let xenconsoled serve a guest's first console again.

    Args:
        owner: who has taken it; None: whoever had, and was killed.
        xen: how handles are opened.

    Returns:
        Whether it had been taken.

    Raises:
        XenError: EBUSY, its taker is alive.
    """
    if owner is None:
        await _refuse_if_served(store, domid, xen if xen is not None else NativeXen())
    tty = await store.transact(lambda tx: restore(tx, domid, owner))
    if tty is None:
        return False
    speak(tty)
    return True


async def _refuse_if_served(store: Store, domid: DomId, xen: XenAccess) -> None:
    nodes = await Nodes.read(store, domid)
    if nodes.owner is None:
        return
    with xen.open_evtchn() as channels:
        try:
            channels.bind_interdomain(domid, nodes.port)
        except XenError as error:
            hint = "its taker is alive: end that, and it hands the console back"
            raise XenError(errno.EBUSY, "console", hint, domid=domid) from error
