# SPDX-License-Identifier: MIT
"""What passes between two halves of others', seen by whoever shares the backend's domain.

The frontend has granted its rings to this domain, so that this domain may map them once more, to
read.  Data pages are left alone: a frontend without persistent grants finds that somebody has its
page and gives the device up, even if it was only copied (tried with Linux 6.12).

A domain that is destroyed stays as a zombie for as long as anybody has its rings: they are given
back as soon as either end is not Connected any more.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from types import TracebackType
from typing import Final, Self

from xenpy.driver import Peeked
from xenpy.errors import XenError, XenNotFoundError, XenPermissionError
from xenpy.gnttab import GrantTable
from xenpy.paths import backend_path
from xenpy.peek import Peeker
from xenpy.store_insist import insist
from xenpy.store_watch import Watch
from xenpy.trace import TraceRecord
from xenpy.types import DevId, DomId, XenbusState
from xenpy.xenbus import parse_state
from xenpy.xenstore import Store

__all__ = ["PassiveTap"]

log = logging.getLogger(__name__)

KEYS_LIMIT: Final = 256
BLINK: Final = 50_000_000
"""ns between two moments at which anything but the rings is looked at."""


class PassiveTap:
    """An async context manager.

    Args:
        store: an open connection.
        device: KIND/DOMID/DEVID; its backend is in this domain.
        peek: `Driver.peek` of the driver that knows the protocol.
        interval: ns between two looks.
        open_grants: where the rings are mapped.

    Attributes:
        over: set once the device is not connected any more, and the rings given back.
        peeked: what the frontend has published; once entered.

    Raises:
        XenError: entering: ENOENT, there is no such device; ENOTCONN, it is not connected; or the
            rings cannot be mapped.
        PeerError: entering: the frontend's keys make no sense.
    """

    peeked: Peeked

    def __init__(
        self,
        store: Store,
        device: str,
        peek: Callable[[Mapping[str, str]], Peeked],
        interval: int,
        open_grants: Callable[[], GrantTable] = GrantTable,
    ) -> None:
        self._store = store
        self._device = device
        self._peek = peek
        self._interval = interval
        self._open_grants = open_grants
        self._held = AsyncExitStack()
        self._maps = ExitStack()
        self._busy = asyncio.Lock()
        self._peeker: Peeker
        self.over = asyncio.Event()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as held:
            back, front, domid = await self._ends()
            states = [f"{end}/state" for end in (back, front)]
            watches = [await held.enter_async_context(self._store.watch(one)) for one in states]
            if not await self._is_connected(states):
                hint = "it is not connected"
                raise XenError(errno.ENOTCONN, "tap", hint, device=self._device)
            keys = await self._store.read_tree(front, depth=2, limit=KEYS_LIMIT)
            self.peeked = self._peek(keys)
            held.enter_context(self._maps)
            grants = self._maps.enter_context(self._open_grants())
            rings = [
                self._maps.enter_context(grants.map(domid, refs, writable=False))
                for refs in self.peeked.refs
            ]
            self._peeker = Peeker(rings, self.peeked.layout)
            for watch in watches:
                task = asyncio.create_task(self._follow(watch, states))
                held.push_async_callback(_ended, task)
            self._held = held.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._give_back()
        await self._held.aclose()

    async def look(self) -> list[tuple[int, TraceRecord]]:
        """Look for a while, and return what was seen: the ring, and the record of each request."""
        async with self._busy:
            if self.over.is_set():
                return []
            until = time.monotonic_ns() + BLINK
            # Not a task, which the loop would cancel on its own when it ends.
            looking = asyncio.get_running_loop().run_in_executor(
                None, self._peeker.look, self._interval, until
            )
            try:
                return await asyncio.shield(looking)
            finally:
                # A thread cannot be cancelled, and the pages must not go while it reads them.
                while not looking.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([looking])

    @property
    def asked(self) -> int:
        """Requests that there were, seen or not."""
        return self._peeker.asked

    @property
    def lost(self) -> int:
        """Those of which the request or the answer was not seen until now."""
        return self._peeker.lost + self._peeker.waiting

    async def _ends(self) -> tuple[str, str, DomId]:
        try:
            kind, *numbers = self._device.split("/")
            domid, devid = map(int, numbers)
            own = await self._store.domid()
            back = backend_path(own, kind, DomId(domid), DevId(devid))
            front = await self._store.read(f"{back}/frontend")
        except (ValueError, XenNotFoundError):
            hint = "no such device here; `xenpy ls` shows them"
            raise XenError(errno.ENOENT, "tap", hint, device=self._device) from None
        return back, front, DomId(domid)

    async def _is_connected(self, states: Sequence[str]) -> bool:
        found = [parse_state(await self._store.get(path)) for path in states]
        return all(state is XenbusState.CONNECTED for state in found)

    async def _follow(self, watch: Watch, states: Sequence[str]) -> None:
        """Give the rings back when an end closes, or when nobody could tell any more."""

        async def still_connected() -> bool:
            try:
                return await self._is_connected(states)
            except XenPermissionError:
                # Whoever took our right to look has taken the device out of use, or is about to.
                return False

        try:
            async for _ in watch:
                if not await insist(still_connected, log):
                    return
        finally:
            await self._give_back()

    async def _give_back(self) -> None:
        """Not while somebody looks."""
        async with self._busy:
            self.over.set()
            self._maps.close()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
