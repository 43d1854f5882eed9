# SPDX-License-Identifier: MIT
"""Finds the devices of one kind and gives each a life of its own.

As xen-9pfsd does: on any event below `backend/KIND`, look at the whole directory and
act on the difference; an event is a hint, never a fact.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from xenpy.backend import Device, DeviceContext, NativeXen, XenAccess
from xenpy.device_nodes import ATTACHED
from xenpy.devlog import BoundedLog
from xenpy.errors import PeerError, XenNotFoundError
from xenpy.lifecycle import DeviceLife, Outcome
from xenpy.paths import domain_path, parse_backend_path
from xenpy.runtime import Deferred
from xenpy.store_insist import STORE_PAUSE
from xenpy.types import DOM0, DomId, XenbusState
from xenpy.xenbus import parse_state
from xenpy.xenstore import Store, Transaction

__all__ = ["KindTakenError", "Service", "claim_kind"]

log = logging.getLogger(__name__)

MAX_BACKEND_KEYS: Final = 128
RETRY_DEFERRED: Final = 1.0
"""Seconds between attempts at unmaps that wait for a view to die."""
SWEEP_DELAY: Final = 0.8
"""Seconds for a toolstack to see Closed before the directory goes: libxl that misses it says
"unable to remove device", and one that waits for the directory in vain, for 10 s, says so too."""


class KindTakenError(Exception):
    """Another daemon serves this kind."""


@contextmanager
def claim_kind(kind: str, rundir: str | os.PathLike[str] = "/run/xenpy") -> Generator[None]:
    """Hold the right to serve `kind` in this domain.  Two daemons on one kind would both
    answer every device.

    A lock on a file, not a key in XenStore: it ends with the process, however it dies.

    Raises:
        KindTakenError: another process holds it; the text says which.
    """
    path = Path(rundir) / f"backend-{kind}.lock"
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            raise KindTakenError(
                f"backend kind {kind!r} is already served by process {holder} ({path})"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            # Its process id may be another's soon.
            file.truncate(0)


class Service:
    """Serves every device of one kind in this domain.

    Args:
        store: an open connection to XenStore.
        kind: the directory below `backend/`, e.g. "vbd3".
        factory: makes a driver's `Device` from its context.
        xen: how devices open their handles.
        options: the operator's options, given to every device.
        domid: the domain that this process runs in.

    Attributes:
        kind: as above.
        options: those that the next device gets.
    """

    def __init__(
        self,
        store: Store,
        kind: str,
        factory: Callable[[DeviceContext], Device],
        *,
        xen: XenAccess | None = None,
        options: Mapping[str, str] | None = None,
        domid: DomId = DOM0,
    ) -> None:
        self._store = store
        self.kind = kind
        self._factory = factory
        self._xen = xen if xen is not None else NativeXen()
        self.options = options or {}
        self._root = f"/local/domain/{domid}/backend/{kind}"
        self._sweeps = domid != DOM0
        self._swept: dict[str, asyncio.Task[None]] = {}
        self._deferred = Deferred()
        self._lives: dict[str, DeviceLife] = {}
        self._tasks: dict[DeviceLife, asyncio.Task[Outcome]] = {}
        self._given_up: set[str] = set()
        self._changed = asyncio.Event()
        self._left = asyncio.Event()
        self._parking = False
        self.ready = asyncio.Event()
        """Set once the devices that were there at the start have been taken up."""

    @property
    def devices(self) -> Mapping[str, DeviceLife]:
        """The devices that are served now, by path."""
        return self._lives

    @property
    def draining(self) -> list[DeviceLife]:
        """Devices that still wait for a store to let go, those without nodes included."""
        return [life for life in self._tasks if life.draining]

    @property
    def deferred_unmaps(self) -> int:
        return len(self._deferred)

    async def run(self) -> None:
        """Serve until cancelled.  Cancel only after `park`, or guests lose their devices."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_backends())
                group.create_task(self._watch_domains())
                group.create_task(self._retry_deferred())
                while True:
                    self._changed.clear()
                    if await self._rescan():
                        self.ready.set()
                    await self._changed.wait()
        except BaseExceptionGroup as errors:
            # A group of one, nearly always: the store's own error says more than the group.
            raise errors.exceptions[0] from None
        finally:
            for task in (*self._tasks.values(), *self._swept.values()):
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            await asyncio.gather(*self._swept.values(), return_exceptions=True)

    async def park(self, timeout: float) -> list[str]:
        """Let go of every device so that the next daemon can take it over as it is.  No
        device is taken up after that, the parked ones least of all.

        Returns:
            The names of those that did not let go within `timeout` seconds, or that the next
            daemon may not take over.
        """
        self._parking = True
        tasks = dict(self._tasks)
        for life in tasks:
            life.park()
        if tasks:
            await asyncio.wait(tasks.values(), timeout=timeout)
        return [life.name for life, task in tasks.items() if not _let_go(task)]

    async def _watch_backends(self) -> None:
        async with self._store.watch(self._root) as watch:
            async for paths in watch:
                self._dispatch(paths)

    def _dispatch(self, paths: Iterable[str]) -> None:
        for path in paths:
            life = self._lives.get("/".join(path.split("/")[: self._root.count("/") + 3]))
            if life is not None:
                life.poke()
            # Made or removed as a whole: what was wrong with it before may not be any more.
            self._given_up.discard(path)
        # The directory may have lost what the path names: look at all of it in any case.
        self._changed.set()

    async def _watch_domains(self) -> None:
        async with self._store.watch("@releaseDomain") as watch:
            async for _ in watch:
                await self._find_dead_domains()

    async def _find_dead_domains(self) -> None:
        domids = {life.context.domid for life in self._lives.values()}
        for domid in domids:
            try:
                alive = await self._store.is_domain_introduced(domid)
            except PermissionError:
                # A driver domain may not ask (XSA-115).  It sees a guest's death by its nodes,
                # which the toolstack removes; the device's own are left to whoever made them.
                return
            except OSError as error:
                log.warning("cannot tell whether domain %d lives: %s", domid, error)
                continue
            for life in self._lives.values() if not alive else ():
                if life.context.domid == domid:
                    life.domain_gone()

    async def _retry_deferred(self) -> None:
        """Sleeps for good while nothing is left over: an idle daemon costs no wake-up."""
        loop = asyncio.get_running_loop()

        def on_left() -> None:
            # The loop may be closed: the process is ending, and nobody retries any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._left.set)

        self._deferred.on_left = on_left
        while True:
            await self._left.wait()
            await asyncio.sleep(RETRY_DEFERRED)
            left = self._deferred.retry()
            if self.draining:
                # One may have been made anew before it was known that the old one drains.
                self._changed.set()
            elif not left:
                self._left.clear()

    async def _rescan(self) -> bool:
        """Whether all that there is has been looked at."""
        try:
            await self._take_up_new(await self._find_devices())
        except OSError as error:
            log.warning("cannot look for devices: %s", error)
            await asyncio.sleep(STORE_PAUSE)
            self._changed.set()
            return False
        return True

    async def _take_up_new(self, found: list[str]) -> None:
        self._given_up.intersection_update(found)
        for path in found:
            life = self._lives.get(path)
            if life is not None and life.draining:
                # The toolstack gave up on it and made the device anew; it drains unseen.
                state = parse_state(await self._store.get(f"{path}/state"))
                if state is XenbusState.INITIALISING:
                    life.replaced()
                    del self._lives[path]
                    life = None
            if life is None and path not in self._given_up and not self._parking:
                await self._take_up(path)

    async def _find_devices(self) -> list[str]:
        paths: list[str] = []
        for domid in await self._list(self._root):
            devids = await self._list(f"{self._root}/{domid}")
            paths += [f"{self._root}/{domid}/{devid}" for devid in devids]
        return paths

    async def _list(self, path: str) -> list[str]:
        try:
            return await self._store.list(path)
        except XenNotFoundError:
            return []

    async def _take_up(self, path: str) -> None:
        try:
            # As it was at one time: keys of one device and of the next that was made in its place
            # are neither's.
            keys = await self._store.transact(
                lambda tx: tx.read_tree(path, depth=1, limit=MAX_BACKEND_KEYS)
            )
        except XenNotFoundError:
            return
        except PeerError as error:
            self._give_up(path, error)
            return
        state = parse_state(keys.get("state"))
        if state is XenbusState.CLOSED and keys.get("online") == "0":
            self._sweep_later(path)
            return
        if state is XenbusState.UNKNOWN:
            return
        if self._parking:
            return
        try:
            context = self._context(path, keys)
            life = DeviceLife(self._store, context, self._factory)
        except Exception as error:
            # A directory that is no device's, or a driver that fails before it begins.
            self._give_up(path, error)
            return
        self._lives[path] = life
        task = asyncio.create_task(life.run(), name=context.name)
        self._tasks[life] = task
        task.add_done_callback(lambda _: self._ended(path, life))
        if keys.get(ATTACHED) == "1":
            # Its domain may have died while nobody served it.
            await self._find_dead_domains()

    def _give_up(self, path: str, error: Exception) -> None:
        """This device costs no other: it is left alone until its directory has gone."""
        known = isinstance(error, ValueError | PeerError)
        log.error("%s: not served: %s", path, error, exc_info=None if known else error)
        self._given_up.add(path)

    def _context(self, path: str, keys: Mapping[str, str]) -> DeviceContext:
        _, _, domid, devid = parse_backend_path(path)
        if keys.get("frontend-id") != str(domid):
            raise ValueError(f"frontend-id is {keys.get('frontend-id')!r}, the path says {domid}")
        frontend = keys.get("frontend", "")
        if not frontend.startswith(f"{domain_path(domid)}/"):
            raise ValueError(f"frontend {frontend!r} does not belong to domain {domid}")
        return DeviceContext(
            kind=self.kind,
            domid=domid,
            devid=devid,
            path=path,
            frontend_path=frontend,
            backend_keys=keys,
            options=self.options,
            xen=self._xen,
            log=BoundedLog(log, f"{self.kind}/{domid}/{devid}"),
            deferred=self._deferred,
            store_path=self._store.path,
        )

    def _ended(self, path: str, life: DeviceLife) -> None:
        task = self._tasks.pop(life)
        current = self._lives.get(path) is life
        if current:
            del self._lives[path]
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.error("%s: given up: %s", life.name, error, exc_info=error)
            if current:
                self._given_up.add(path)
        else:
            log.info("%s: %s", life.name, task.result().value)
        self._changed.set()

    def _sweep_later(self, path: str) -> None:
        """In a driver domain: what is closed for good, the toolstack waits for us to remove."""
        if self._sweeps and not self._parking and path not in self._swept:
            self._swept[path] = asyncio.create_task(self._sweep(path))
            self._swept[path].add_done_callback(lambda _: self._swept.pop(path))

    async def _sweep(self, path: str) -> None:
        await asyncio.sleep(SWEEP_DELAY)

        async def remove(tx: Transaction) -> None:
            state = parse_state(await tx.get(f"{path}/state"))
            if state is XenbusState.CLOSED and await tx.get(f"{path}/online") == "0":
                await tx.rm(path)

        try:
            await self._store.transact(remove)
        except OSError as error:
            log.warning("%s is left as it is: %s", path, error)


def _let_go(task: asyncio.Task[Outcome]) -> bool:
    """Whether a device of a daemon that parks has ended in good order, or had ended before."""
    if not task.done():
        return False
    return task.cancelled() or bool(task.exception()) or task.result() is not Outcome.GIVEN_UP
