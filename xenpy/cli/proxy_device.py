# SPDX-License-Identifier: MIT
"""The device that `xenpy proxy` makes: served by this process, and gone when it ends."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import TypeVar

from xenpy.attach import DevicePlan, attach, detach, endpoints
from xenpy.control import Control
from xenpy.daemon import PARK_BOUND
from xenpy.driver import Driver
from xenpy.errors import XenNotFoundError, XenTimeoutError
from xenpy.lifecycle import DeviceLife
from xenpy.paths import domain_path
from xenpy.service import Service
from xenpy.store_insist import insist
from xenpy.types import DomId
from xenpy.xenstore import NotYet, Reader, Store, Transaction

__all__ = ["Proxy"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class Proxy:
    """One device, served as long as the process lives.

    Args:
        store: of the guest's half.
        domid: of this domain.
        driver: whose device it is.
        plan: of the guest's half; nobody else serves its kind.
        args: of the command line.
    """

    def __init__(
        self,
        store: Store,
        domid: DomId,
        driver: Driver,
        plan: DevicePlan,
        args: argparse.Namespace,
    ) -> None:
        kind = plan.backend_kind
        self._store = store
        self._domid = domid
        self._plan = plan
        self._args = args
        self._ends = endpoints(args.domid, plan.frontend_kind, kind, plan.devid, domid)
        # Whoever started this wrote the filters, and they run for him.
        options = {"python": "1"}
        self._service = Service(store, kind, driver.backend, options=options, domid=domid)
        self._control = Control(self._service, driver.name, args.rundir)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> int:
        """Returns the exit status: 0, or 1 if the guest had to be robbed of its disk."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled)
        serving = asyncio.create_task(self._service.run())
        showing = asyncio.create_task(self._control.run())
        try:
            return await self._stand(serving)
        finally:
            # What is closing by now lets go of the disk behind, or another proxy could not have it.
            await self._service.park(PARK_BOUND)
            for task in (serving, showing):
                task.cancel()
            await asyncio.gather(serving, showing, return_exceptions=True)

    def _signalled(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _stand(self, serving: asyncio.Task[None]) -> int:
        if await self._store.exists(self._ends.backend):
            log.info("taking away what a proxy before has left")
            await self._take_away(serving)
        counters = Counters(self._service, self._ends.backend)
        ours = True
        try:
            if await self._attached(serving):
                self._say()
                going = asyncio.create_task(insist(lambda: self._store.wait(self._gone), log))
                if await self._first(serving, going):
                    await going
        except FileExistsError:
            ours = False
            raise
        finally:
            counters.look()
            status = await self._take_away(serving) if ours else 1
        counters.look()
        log.info("%s", counters)
        return status

    async def _attached(self, serving: asyncio.Task[None]) -> bool:
        """Make the device.  Returns False if somebody wanted an end before it was served."""
        attaching = asyncio.create_task(
            attach(
                self._store, self._args.domid, self._plan, backend_domid=self._domid,
                timeout=self._args.timeout,
            )
        )  # fmt: skip
        if not await self._first(serving, attaching):
            await asyncio.gather(attaching, return_exceptions=True)
            return False
        await attaching
        return True

    async def _first(self, serving: asyncio.Task[None], task: asyncio.Task[T]) -> bool:
        """Wait for `task`.  Returns False, and cancels it, if somebody wants an end before.

        Raises:
            what ended the service.
        """
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([serving, stopping, task], return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
            return task.done()
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()

    async def _gone(self, reader: Reader) -> None:
        """The device, with its guest or without."""
        if await reader.exists(self._ends.backend):
            raise NotYet

    def _say(self) -> None:
        ends, plan = self._ends, self._plan
        if self._args.json:
            print(json.dumps({"frontend": ends.frontend, "backend": ends.backend}), flush=True)
        else:
            print(f"{plan.backend_kind}/{self._args.domid}/{plan.devid}", flush=True)

    async def _take_away(self, serving: asyncio.Task[None]) -> int:
        """Returns 0, or 1 if that was not done in good order."""
        try:
            if serving.done():
                log.warning("nobody serves it any more: its nodes are removed")
            elif await self._detached(force=False):
                return 0
            else:
                log.warning("the guest does not let go: its disk is taken away")
                if await self._detached(force=True):
                    return 1
                log.warning("nor does the disk behind it: its nodes are removed")
            for path in (self._ends.frontend, self._ends.backend):
                await self._store.rm(path)
            return 1
        finally:
            await self._tidy()

    async def _detached(self, *, force: bool) -> bool:
        """Whether everybody let go, in time and before somebody is in a hurry."""
        detaching = asyncio.create_task(
            detach(self._store, self._ends, timeout=self._args.timeout, force=force)
        )
        hurry = asyncio.create_task(self._hurry.wait())
        others = [] if force else [hurry]
        await asyncio.wait([detaching, *others], return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        detaching.cancel()
        try:
            await detaching
        except (XenTimeoutError, asyncio.CancelledError):
            return False
        return True

    async def _tidy(self) -> None:
        """The kind is of this device alone: its directory is of no use any more."""
        root = f"{domain_path(self._domid)}/backend/{self._plan.backend_kind}"

        async def remove(tx: Transaction) -> None:
            with suppress(XenNotFoundError):
                if not await tx.list(root):
                    await tx.rm(root)

        await self._store.transact(remove)


class Counters:
    """What has passed: of the device at `path`, as long as it is there and once more."""

    def __init__(self, service: Service, path: str) -> None:
        self._service = service
        self._path = path
        self._life: DeviceLife | None = None
        self._counted: Mapping[str, int] = {}

    def look(self) -> None:
        self._life = self._service.devices.get(self._path, self._life)
        if self._life is not None:
            # Those of filters end with the store.
            self._counted = {**self._counted, **self._life.stats()}

    def __str__(self) -> str:
        shown = (f"{name} {value}" for name, value in self._counted.items() if value)
        return ", ".join(shown) or "nothing has passed"
