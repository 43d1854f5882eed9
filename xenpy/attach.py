# SPDX-License-Identifier: MIT
"""Makes and removes the XenStore nodes of a device, as libxl's toolstack does.

For kinds that no toolstack knows, for Xen 4.17, whose xl refuses `backendtype=tap`, and
for a frontend in this very domain.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from xenpy.backend import DeviceError, Keys
from xenpy.device_nodes import ATTACHED, REFRESH, REFRESH_ERROR, REFRESHED
from xenpy.errors import XenNotFoundError, XenTimeoutError
from xenpy.paths import backend_path, frontend_path
from xenpy.types import DOM0, DevId, DomId, XenbusState
from xenpy.xenbus import parse_state
from xenpy.xenstore import NotYet, Reader, Store, Transaction

__all__ = [
    "NO_SETTINGS", "DevicePlan", "Endpoints", "attach", "detach", "endpoints", "parse_words",
    "refresh",
]  # fmt: skip

NO_SETTINGS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What a driver wants written for a device.

    Attributes:
        frontend_kind, backend_kind: the directory names, e.g. "vbd" and "vbd3".
        devid: the device's number, e.g. 51712.
        backend_keys, frontend_keys: beside those that every device has.
    """

    frontend_kind: str
    backend_kind: str
    devid: DevId
    backend_keys: Keys
    frontend_keys: Keys


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The two directories of a device."""

    frontend: str
    backend: str


async def attach(
    store: Store,
    domid: DomId,
    plan: DevicePlan,
    *,
    backend_domid: DomId = DOM0,
    timeout: float = 10.0,
) -> Endpoints:
    """Make a device and wait until its backend serves it.

    Raises:
        FileExistsError: the domain has a device of that number already.
        ProcessLookupError: there is no such domain.
        DeviceError: the backend refused (`hotplug-error`), or nobody serves the kind.
            The nodes have been removed again; if the backend does not let go of them even
            so, the text says that they are left.
    """
    ends = endpoints(domid, plan.frontend_kind, plan.backend_kind, plan.devid, backend_domid)
    if not await store.is_domain_introduced(domid):
        raise ProcessLookupError(f"there is no domain {domid}")
    common: Keys = {"state": int(XenbusState.INITIALISING)}

    async def write(tx: Transaction) -> None:
        for path in (ends.frontend, ends.backend):
            if await tx.exists(path):
                raise FileExistsError(f"{path} exists already")
        frontend: Keys = {"backend": ends.backend, "backend-id": int(backend_domid)}
        backend: Keys = {
            "frontend": ends.frontend,
            "frontend-id": int(domid),
            "online": 1,
            ATTACHED: 1,
        }
        sides: list[tuple[str, DomId, DomId, Keys]] = [
            (ends.frontend, domid, backend_domid, {**frontend, **plan.frontend_keys, **common}),
            (ends.backend, backend_domid, domid, {**backend, **plan.backend_keys, **common}),
        ]
        for path, owner, reader, keys in sides:
            await tx.mkdir(path)
            # Keys inherit the directory's permissions: owner all, peer read, others none.
            await tx.set_perms(path, f"n{owner},r{reader}")
            for key, value in keys.items():
                await tx.write(f"{path}/{key}", value)

    await store.transact(write)
    try:
        await _until_served(store, ends.backend, timeout)
    except DeviceError as error:
        try:
            await _remove(store, ends, timeout=timeout)
        except XenTimeoutError:
            raise DeviceError(f"{error}; it does not close, {ends.backend} is left") from error
        raise
    return ends


async def _until_served(store: Store, backend: str, timeout: float) -> None:
    async def served(reader: Reader) -> None:
        status = await reader.get(f"{backend}/hotplug-status")
        if status == "error":
            reason = await reader.get(f"{backend}/hotplug-error", "no reason given")
            raise DeviceError(reason or "no reason given")
        state = parse_state(await reader.get(f"{backend}/state"))
        if status != "connected" or state in (XenbusState.UNKNOWN, XenbusState.INITIALISING):
            raise NotYet

    try:
        await store.wait(served, timeout=timeout)
    except TimeoutError:
        kind = backend.split("/")[-3]
        raise DeviceError(
            f"no backend answered within {timeout:g} s: does a daemon serve {kind}? "
            "(xenpy serve block)"
        ) from None


async def detach(
    store: Store, ends: Endpoints, *, timeout: float = 10.0, force: bool = False
) -> None:
    """Ask for a close, wait for it, remove the nodes.

    Args:
        force: do not ask the frontend: take its nodes away first, as `xl block-detach
            --force` does.

    Raises:
        XenTimeoutError: the backend did not close; the nodes are left.
    """
    if force and await store.exists(ends.frontend):
        await store.rm(ends.frontend)
    await _remove(store, ends, timeout=timeout)


async def _remove(store: Store, ends: Endpoints, *, timeout: float) -> None:
    async def ask(tx: Transaction) -> None:
        state = await tx.get(f"{ends.backend}/state")
        if parse_state(state) is XenbusState.INITIALISING:
            # Nobody has taken it up, so that nobody would answer; and a backend that is
            # about to finds it gone, or this transaction finds its state changed.
            await tx.rm(ends.backend)
        elif state is not None:
            await tx.write(f"{ends.backend}/online", 0)
            if parse_state(state) is not XenbusState.CLOSED:
                await tx.write(f"{ends.backend}/state", int(XenbusState.CLOSING))

    async def closed(reader: Reader) -> None:
        state = await reader.get(f"{ends.backend}/state")
        if state is not None and parse_state(state) is not XenbusState.CLOSED:
            raise NotYet

    await store.transact(ask)
    await store.wait(closed, timeout=timeout)
    for path in (ends.frontend, ends.backend):
        await store.rm(path)

    async def tidy(tx: Transaction) -> None:
        # In a transaction: another device may be made there at this moment.
        parent = ends.backend.rsplit("/", 1)[0]
        with suppress(XenNotFoundError):
            if not await tx.list(parent):
                await tx.rm(parent)

    await store.transact(tidy)


async def refresh(
    store: Store,
    ends: Endpoints,
    settings: Mapping[str, str] = NO_SETTINGS,
    *,
    timeout: float = 10.0,
) -> None:
    """Ask a backend to look again at what it serves; returns once it has.

    Args:
        settings: keys of the backend's directory that are to be others from now on.  If the
            backend does not take them, they are what they were before.

    Raises:
        FileNotFoundError: there is no such device.
        DeviceError: it cannot, and why; or nobody serves the device.
    """
    asked = " ".join([secrets.token_hex(8), *settings])
    before: dict[str, str | None] = {}

    async def ask(tx: Transaction) -> None:
        if not await tx.exists(ends.backend):
            raise FileNotFoundError(f"there is no device {ends.backend}")
        for key, value in settings.items():
            before[key] = await tx.get(f"{ends.backend}/{key}")
            await tx.write(f"{ends.backend}/{key}", value)
        await tx.write(f"{ends.backend}/{REFRESH}", asked)

    async def take_back(tx: Transaction) -> None:
        if not await tx.exists(ends.backend):
            return
        for key, value in before.items():
            if value is not None:
                await tx.write(f"{ends.backend}/{key}", value)
            else:
                await tx.rm(f"{ends.backend}/{key}")

    async def answered(reader: Reader) -> str | None:
        if await reader.get(f"{ends.backend}/{REFRESHED}") != asked:
            raise NotYet
        return await reader.get(f"{ends.backend}/{REFRESH_ERROR}")

    await store.transact(ask)
    try:
        reason = await store.wait(answered, timeout=timeout)
    except TimeoutError:
        reason = f"no backend answered within {timeout:g} s: does a daemon serve {ends.backend}?"
    if reason:
        await store.transact(take_back)
        raise DeviceError(reason)


def endpoints(
    domid: DomId, frontend_kind: str, backend_kind: str, devid: DevId, backend_domid: DomId
) -> Endpoints:
    """Where a device's two directories are.

    Computed, never read from the frontend's `backend` key: the guest may write that, and
    a detach would then remove another guest's device.
    """
    return Endpoints(
        frontend_path(domid, frontend_kind, devid),
        backend_path(backend_domid, backend_kind, domid, devid),
    )


def parse_words(words: list[str]) -> Mapping[str, str]:
    """`key=value` words of a command line, as nbdkit takes them.

    Raises:
        ValueError: a word without `=`, or a key given twice.
    """
    pairs: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise ValueError(f"{word!r} is not key=value")
        if key in pairs:
            raise ValueError(f"{key} is given twice")
        pairs[key] = value
    return pairs
