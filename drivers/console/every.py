# SPDX-License-Identifier: MIT
"""The first console of every guest, where no xenconsoled runs: `xenpy console every`."""

from __future__ import annotations

import asyncio
import logging
import re

from xenpy.backend import XenAccess
from xenpy.devlog import BoundedLog
from xenpy.drivers.console.hub import Hub
from xenpy.drivers.console.primary import Primary
from xenpy.drivers.console.primary_nodes import exists
from xenpy.drivers.console.pty_outlet import PtyOutlet
from xenpy.drivers.console.settings import LogSettings
from xenpy.errors import PeerError
from xenpy.paths import domain_path
from xenpy.store_insist import insist
from xenpy.types import DOM0, DomId
from xenpy.xenstore import Store

__all__ = ["EveryConsole"]

log = logging.getLogger(__name__)


class EveryConsole:
    """Takes the console of each guest as it is created, and gives it a pty and a log.

    libxl waits ten seconds for the pty's name, then it ends the guest.

    Args:
        settings: of the logs.

    Attributes:
        hubs: the consoles that are served, by domid.
    """

    def __init__(self, store: Store, settings: LogSettings, xen: XenAccess | None = None) -> None:
        self._store = store
        self._settings = settings
        self._xen = xen
        self._changed = asyncio.Event()
        self._tasks: dict[DomId, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.hubs: dict[DomId, Hub] = {}

    async def run(self) -> None:
        """Serve until cancelled; then every console is handed back."""
        log.info("serving the first console of every guest")
        try:
            async with asyncio.TaskGroup() as group:
                for event in ("@introduceDomain", "@releaseDomain"):
                    group.create_task(self._follow(event))
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    await insist(self._rescan, log)
        except BaseExceptionGroup as errors:
            # A group of one, nearly always: the store's own error says more than the group.
            raise errors.exceptions[0] from None
        finally:
            for domid in list(self._tasks):
                self._end(domid)
            await asyncio.gather(*self._ending, return_exceptions=True)

    def _end(self, domid: DomId) -> None:
        task = self._tasks.pop(domid)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()

    async def _follow(self, event: str) -> None:
        async with self._store.watch(event) as watch:
            async for _ in watch:
                self._changed.set()

    async def _rescan(self) -> None:
        names = await self._store.list("/local/domain")
        found = {DomId(int(name)) for name in names if name.isdigit()} - {DOM0}
        alive = {domid for domid in found if await self._store.is_domain_introduced(domid)}
        for domid in alive - set(self._tasks):
            self._tasks[domid] = asyncio.create_task(self._keep(domid), name=f"console {domid}")
        for domid in set(self._tasks) - alive:
            self._end(domid)

    async def _keep(self, domid: DomId) -> None:
        """One console, as long as its guest lives, over any number of resets of it.  What is
        wrong with it costs no other."""
        said = BoundedLog(log, f"console/{domid}/0")
        try:
            while True:
                await insist(lambda: self._store.wait(lambda tx: exists(tx, domid)), said)
                await insist(lambda: self._serve(domid, said), said)
        except (PeerError, OSError) as error:
            said.error("%s", error)

    async def _serve(self, domid: DomId, said: BoundedLog) -> None:
        hub = self.hubs[domid] = Hub()
        try:
            pty = PtyOutlet(hub)
            hub.outlets.append(pty)
            await self._open_log(domid, hub, said)
            async with Primary(self._store, domid, hub, pty.name, self._xen) as console:
                said.info("served on %s", pty.name)
                await console.ended()
        finally:
            hub.close()
            del self.hubs[domid]

    async def _open_log(self, domid: DomId, hub: Hub, said: BoundedLog) -> None:
        name = await self._store.get(f"{domain_path(domid)}/name", "")
        if not name or not re.fullmatch(r"[\w.+-]{1,64}", name, re.ASCII):
            name = str(domid)
        try:
            file = self._settings.open(None, f"guest-{name}", said)
        except OSError as error:
            # A guest without a console would be ended by libxl; one without a log is not.
            said.error("%s: %s", error.filename, error.strerror)
        else:
            hub.outlets += [file] if file is not None else []
