# SPDX-License-Identifier: MIT
"""One device's two directories in XenStore, as its frontend reads and writes them.

What the backend wrote is hostile.  `backend` and `backend-id` in our own directory are the
toolstack's; they are checked against each other and against what the backend says, since
our pages are granted to whom they name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from xenpy.errors import PeerError, XenError
from xenpy.paths import BackendPath, domain_path, parse_backend_path
from xenpy.types import DOMID_FIRST_RESERVED, DomId, XenbusState
from xenpy.xenbus import parse_state
from xenpy.xenstore import Reader, Store, Transaction

__all__ = ["DeviceGoneError", "Ends", "FrontendNodes", "read_ends"]

MAX_BACKEND_KEYS: Final = 256
"""Keys read of a backend's directory; a disk has about 30."""
SHOWN: Final = 80

_HOME: Final = re.compile(r"/local/domain/(0|[1-9][0-9]{0,4})/[\w/-]+", re.ASCII)


class DeviceGoneError(Exception):
    """The device's directory has gone, or names another backend by now."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a device's two directories are.

    Attributes:
        path: the frontend's, absolute.
        domid: the frontend's domain.
        backend: the backend's; its domid, devid and domain have been checked.
    """

    path: str
    domid: DomId
    backend: BackendPath


async def read_ends(store: Store, path: str) -> Ends:
    """Find a device's backend.

    Args:
        path: the frontend's directory, absolute.

    Raises:
        XenNotFoundError: there is no such device.
        PeerError: its two halves do not name each other, so that nobody can say to whom
            its pages would be granted.
    """
    found = _HOME.fullmatch(path)
    if found is None or int(found[1]) >= DOMID_FIRST_RESERVED:
        raise PeerError(f"{path[:SHOWN]!r} is no directory of a frontend")
    domid = DomId(int(found[1]))

    async def read(tx: Transaction) -> Ends:
        backend = await _backend_of(tx, path)
        if (backend.domid, str(backend.devid)) != (domid, path.rsplit("/", 1)[1]):
            raise PeerError(f"{path} names {backend} as its backend, which is another device's")
        try:
            owner = (await tx.get_perms(str(backend))).owner
            back = [await tx.get(f"{backend}/{key}") for key in ("frontend", "frontend-id")]
        except (FileNotFoundError, PermissionError) as error:
            raise PeerError(f"the backend's directory cannot be read: {error}") from error
        if owner != backend.backend_domid:
            # As XSA-175, the other way round: another domain could write its keys.
            raise PeerError(f"{backend} belongs to domain {owner}")
        if back != [path, str(domid)]:
            raise PeerError(f"{backend} is the backend of {str(back[0])[:SHOWN]!r}, not of {path}")
        return Ends(path, domid, backend)

    return await store.transact(read)


async def _backend_of(reader: Reader, path: str) -> BackendPath:
    """What our own directory names."""
    text, domid = await reader.read(f"{path}/backend"), await reader.get(f"{path}/backend-id")
    try:
        backend = parse_backend_path(text)
    except ValueError as error:
        raise PeerError(f"{path}: {error}") from error
    if domid != str(backend.backend_domid):
        raise PeerError(f"{path}: backend-id is {str(domid)[:SHOWN]!r}, the backend is {backend}")
    return backend


class FrontendNodes:
    """The nodes of the device at `ends`."""

    def __init__(self, store: Store, ends: Ends) -> None:
        self._store = store
        self.ends = ends
        self._front = ends.path
        self._back = str(ends.backend)

    async def own_state(self) -> XenbusState:
        """What our own `state` key says."""
        return parse_state(await self._store.get(f"{self._front}/state"))

    async def observe(self) -> XenbusState:
        """The backend's `state`; UNKNOWN if it is gone or hidden.

        Raises:
            DeviceGoneError: our own directory has gone, or names another backend.
        """
        await self._check(self._store)
        try:
            return parse_state(await self._store.get(f"{self._back}/state"))
        except PermissionError:
            return XenbusState.UNKNOWN

    async def backend_keys(self) -> Mapping[str, str]:
        """The backend's directory at one moment; {} if it has gone.

        Raises:
            PeerError: it cannot be read, or is too large.
        """
        try:
            return await self._store.transact(
                lambda tx: tx.read_tree(self._back, limit=MAX_BACKEND_KEYS)
            )
        except FileNotFoundError:
            return {}
        except PermissionError as error:
            raise PeerError(f"the backend's directory cannot be read: {error}") from error

    async def publish(
        self, keys: Mapping[str, str | int], stale: re.Pattern[str] | None = None
    ) -> None:
        """Write keys into our own directory, all or nothing, in the order given.

        Args:
            stale: keys of connections before, removed first.

        Raises:
            DeviceGoneError: it is not this device's directory any more.
        """

        async def write(tx: Transaction) -> None:
            await self._check(tx)
            if stale is not None:
                for key in await tx.list(self._front):
                    if stale.fullmatch(key):
                        await tx.rm(f"{self._front}/{key}")
            for key, value in keys.items():
                await tx.write(f"{self._front}/{key}", value)

        await self._store.transact(write)

    async def write_error(self, text: str) -> None:
        """As the kernel's xenbus_dev_error does: error/device/KIND/DEVID/error at home."""
        home = domain_path(self.ends.domid)
        path = f"{home}/error{self._front.removeprefix(home)}/error"
        try:
            await self._store.write(path, text)
        except XenError:
            # Where a toolstack made no `error` directory, a guest may not write one.
            return

    async def _check(self, reader: Reader) -> None:
        try:
            backend = await _backend_of(reader, self._front)
        except FileNotFoundError:
            raise DeviceGoneError(f"{self._front} has been removed") from None
        except PeerError as error:
            raise DeviceGoneError(str(error)) from error
        if backend != self.ends.backend:
            # Its pages are granted to the one before.
            raise DeviceGoneError(f"{self._front} names {backend} as its backend by now")
