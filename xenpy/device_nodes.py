# SPDX-License-Identifier: MIT
"""One device's two directories in XenStore, as its backend reads and writes them.

What is read of the frontend's is hostile; what is written goes into our own only if it is
still the same device's.  xenstored may be restarted at any time: all but the error node is
done again until it answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from xenpy.backend import DeviceContext, Keys
from xenpy.errors import PeerError, XenError
from xenpy.paths import parse_backend_path
from xenpy.store_insist import insist
from xenpy.types import XenbusState
from xenpy.xenbus import parse_state
from xenpy.xenstore import Store, Transaction

__all__ = [
    "ATTACHED", "PARKED", "REFRESH", "REFRESHED", "REFRESH_ERROR", "DeviceNodes",
    "NodesGoneError", "NodesRemadeError", "StartedOverError", "error_text",
]  # fmt: skip

ATTACHED: Final = "xenpy-attached"
"""Key in the backend directory: made by `xenpy attach`, not by the toolstack."""
PARKED: Final = "xenpy-parked"
"""Key in the backend directory: a daemon ended in good order, with every request that it
had taken answered, and the next one may take the device over as it is."""
REFRESH: Final = "xenpy-refresh"
"""Key in the backend directory: whoever writes something new there asks the backend to look
again at what it serves.  After a first word, it names keys of this directory that are others."""
REFRESHED: Final = "xenpy-refreshed"
REFRESH_ERROR: Final = "xenpy-refresh-error"
"""The answer: what was written there, and why it could not be done, or nothing."""
MAX_ERROR_TEXT: Final = 256
MAX_FRONTEND_KEYS: Final = 256
"""Keys read of a frontend's directory; a multi-queue disk has about 10 a queue."""
T = TypeVar("T")

CONNECTING: Final = (XenbusState.INITIALISED, XenbusState.CONNECTED)


class NodesGoneError(Exception):
    """The device's directory has gone: writing would bring back a corpse."""


class NodesRemadeError(NodesGoneError):
    """The directory is another device's by now: writing would lie about that one."""


class StartedOverError(Exception):
    """The frontend has other rings by now, or none."""


def error_text(error: Exception) -> str:
    """What is said of it in a node."""
    return str(error)[:MAX_ERROR_TEXT] or type(error).__name__


class DeviceNodes:
    """The nodes of the device that `context` names."""

    def __init__(self, store: Store, context: DeviceContext) -> None:
        self._store = store
        self._context = context
        self._log = context.log
        self._back = context.path
        self._front = context.frontend_path

    async def observe(self) -> tuple[XenbusState, XenbusState, bool]:
        """Our `state`, the frontend's, and whether the toolstack wants the device."""
        node, online, theirs = await self._insist(
            lambda: asyncio.gather(
                self._store.get(f"{self._back}/state"),
                self._store.get(f"{self._back}/online"),
                self._read_frontend_state(),
            )
        )
        return parse_state(node), theirs, online != "0"

    async def _read_frontend_state(self) -> XenbusState:
        try:
            return parse_state(await self._store.get(f"{self._front}/state"))
        except PermissionError:
            # The guest took our right to read its node away: it has hidden its device.
            return XenbusState.UNKNOWN

    async def frontend_keys(self) -> Mapping[str, str]:
        """The frontend's directory.

        Raises:
            PeerError: it is not the frontend's, cannot be read, or is too large.
        """
        context = self._context
        path = self._front
        try:
            owner = (await self._insist(lambda: self._store.get_perms(path)))[0].domid
            if owner != context.domid:
                # XSA-175: keys that another guest can write say nothing about this one.
                raise PeerError(f"{path} belongs to domain {owner}, not to {context.domid}")
            return await self._insist(
                lambda: self._store.read_tree(path, depth=2, limit=MAX_FRONTEND_KEYS)
            )
        except (FileNotFoundError, PermissionError) as error:
            raise PeerError(f"the frontend's directory cannot be read: {error}") from error

    async def get(self, key: str) -> str | None:
        """One of our own keys."""
        return await self._insist(lambda: self._store.get(f"{self._back}/{key}"))

    async def rm(self, key: str) -> None:
        """Remove one of our own keys."""
        await self._insist(lambda: self._store.rm(f"{self._back}/{key}"))

    async def publish(
        self, phase: XenbusState, keys: Keys, frontend: Mapping[str, str] | None = None
    ) -> None:
        """Write keys into our own directory, all or nothing.

        Args:
            phase: the state that the device is really in.
            frontend: what the frontend's keys must still be, in the same transaction.

        Raises:
            NodesGoneError: it is not this device's directory any more.
            StartedOverError: the frontend's keys are others, or it is not connecting.
        """

        async def write(tx: Transaction) -> None:
            await self._check(tx, phase)
            if frontend is not None and not await self._is_still(tx, frontend):
                raise StartedOverError
            for key, value in keys.items():
                self._log.debug("%s = %s", key, value)
                await tx.write(f"{self._back}/{key}", value)

        await self._insist(lambda: self._store.transact(write))

    async def tell_frontend(self, keys: Keys) -> None:
        """Write keys into the frontend's directory that the guest cannot change: whoever reads
        one, such as `xl console`, trusts it (XSA-57)."""
        if not keys:
            return
        ends = parse_backend_path(self._back)
        perms = f"n{ends.backend_domid},r{ends.domid}"

        async def write(tx: Transaction) -> None:
            if not await tx.exists(self._front):
                return
            for key, value in keys.items():
                path = f"{self._front}/{key}"
                # Anew: what is there may be the guest's, and so may its permissions.
                await tx.rm(path)
                await tx.write(path, value)
                await tx.set_perms(path, perms)

        try:
            await self._insist(lambda: self._store.transact(write))
        except PermissionError as error:
            # A driver domain.
            self._log.debug("the frontend is not told: %s", error)

    async def tell_again(self, phase: XenbusState, keys: Keys) -> None:
        """Write keys into our own directory, and the state once more: the one node that a
        frontend watches, so that it looks at the others (blkback's xen_vbd_resize).

        Raises:
            NodesGoneError: it is not this device's directory any more.
        """

        async def write(tx: Transaction) -> None:
            await self._check(tx, phase)
            for key, value in keys.items():
                await tx.write(f"{self._back}/{key}", value)
            # Unless the toolstack has just written one of its own, to have it closed.
            if parse_state(await tx.get(f"{self._back}/state")) is phase:
                await tx.write(f"{self._back}/state", int(phase))

        await self._insist(lambda: self._store.transact(write))

    async def remove(self, phase: XenbusState) -> None:
        """Remove our own directory.

        Raises:
            NodesGoneError: it is not this device's any more.
        """

        async def remove(tx: Transaction) -> None:
            await self._check(tx, phase)
            await tx.rm(self._back)

        await self._insist(lambda: self._store.transact(remove))

    async def write_error(self, text: str | None) -> None:
        """As the kernel's xenbus_dev_error does: error/NODENAME/error below our own domain.

        Unlike there, None takes it back: a device that works again has no error, nor has the
        next domain of this number.
        """
        home, _, nodename = self._back.partition("/backend/")
        path = f"{home}/error/backend/{nodename}"
        try:
            if text is not None:
                await self._store.write(f"{path}/error", text)
            else:
                await self._store.rm(path)
        except XenError as error:
            self._log.debug("the error node is left as it is: %s", error)

    async def _check(self, tx: Transaction, phase: XenbusState) -> None:
        state = await tx.get(f"{self._back}/state")
        if state is None:
            raise NodesGoneError
        if parse_state(state) is not XenbusState.INITIALISING:
            return
        if phase is not XenbusState.INITIALISING:
            raise NodesRemadeError
        # Not opened yet: a device made anew shows in what the toolstack asks for.
        for key, value in self._context.backend_keys.items():
            if key != "online" and await tx.get(f"{self._back}/{key}") != value:
                raise NodesRemadeError

    async def _is_still(self, tx: Transaction, before: Mapping[str, str]) -> bool:
        try:
            now = await tx.read_tree(self._front, depth=2, limit=MAX_FRONTEND_KEYS)
        except (FileNotFoundError, PermissionError, PeerError):
            return False
        connecting = parse_state(now.get("state")) in CONNECTING
        return connecting and {**now, "state": ""} == {**before, "state": ""}

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """All that is done here may be done twice.  The device's I/O goes on meanwhile."""
        return await insist(call, self._log)
