# SPDX-License-Identifier: MIT
"""What of a vchan is in XenStore: the server's two keys; and whether a domain lives."""

from __future__ import annotations

import logging
from collections.abc import Callable

from xenpy.drivers.vchan.protocol import EVENT_CHANNEL, RING_REF, Keys
from xenpy.errors import XenError, XenNotFoundError, XenPermissionError
from xenpy.paths import domain_path
from xenpy.types import DomId
from xenpy.xenstore import NotYet, Reader, Store, Transaction

__all__ = ["absolute", "publish", "published", "watch_domain", "withdraw"]

log = logging.getLogger(__name__)


def absolute(path: str, server: DomId) -> str:
    """`path`, which if relative is below the server's home, whichever side asks."""
    return path if path.startswith("/") else f"{domain_path(server)}/{path}"


async def publish(store: Store, path: str, keys: Keys, own: DomId, client: DomId) -> None:
    """Write the keys, for nobody to read but the client, as libxenvchan_server_init does.

    Raises:
        XenError: xenstored refuses.
    """

    async def write(tx: Transaction) -> None:
        for name, value in keys.items().items():
            await tx.write(f"{path}/{name}", value)
            await tx.set_perms(f"{path}/{name}", f"n{own},r{client}")

    await store.transact(write)


async def withdraw(store: Store, path: str, keys: Keys) -> None:
    """Remove the keys, unless another server has written its own there; and `path` with them, if
    nothing else is below it.

    Raises:
        XenError: xenstored refuses.
    """

    async def remove(tx: Transaction) -> None:
        ours = keys.items()
        for name, value in ours.items():
            if await tx.get(f"{path}/{name}") != str(value):
                return
        for name in ours:
            await tx.rm(f"{path}/{name}")
        if not await tx.list(path):
            await tx.rm(path)

    await store.transact(remove)


async def published(tx: Reader, path: str) -> Keys:
    """The keys of a server; for `Store.wait`.

    Raises:
        NotYet: one is not there, or not for this domain to read; which xenstored says, too, of a
            node that is not there, in a directory of somebody else's.
        PeerError: they make no sense.
    """
    values: dict[str, str] = {}
    for name in (RING_REF, EVENT_CHANNEL):
        try:
            values[name] = await tx.read(f"{path}/{name}")
        except (XenNotFoundError, XenPermissionError) as error:
            raise NotYet(str(error)) from None
    return Keys.parse(values)


async def watch_domain(store: Store, domid: DomId, on_gone: Callable[[], None]) -> None:
    """Call once the domain is not there any more: it notifies nobody when it is destroyed.

    xenstored tells privileged domains only; in others this returns and nothing is called.
    """
    try:
        async with store.watch("@releaseDomain") as watch:
            async for _ in watch:
                if not await store.is_domain_introduced(domid):
                    on_gone()
                    return
    except XenError as error:
        log.debug("whether domain %d lives cannot be seen: %s", domid, error)
