# SPDX-License-Identifier: MIT
"""The client of a vchan: wait for the server's keys, map, connect."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final, TypeVar

from xenpy.drivers.vchan.channel import Channel, NativeVchan, VchanAccess
from xenpy.drivers.vchan.link import Link
from xenpy.drivers.vchan.nodes import absolute, published, watch_domain
from xenpy.drivers.vchan.protocol import Keys
from xenpy.drivers.vchan.streams import VchanReader, VchanWriter
from xenpy.errors import XenError, XenTimeoutError
from xenpy.ports import Ports
from xenpy.types import DomId
from xenpy.xenstore import Store

__all__ = ["joined", "open_connection"]

T = TypeVar("T")

LED_NOWHERE: Final = {errno.EINVAL, errno.ECONNREFUSED, errno.ENOENT}
"""What it gives to join the channel of a server that is gone, or has a client."""
RETRY_FIRST: Final = 0.02
RETRY_LIMIT: Final = 0.5
"""Seconds between two attempts at it: doubled."""


async def open_connection(
    domid: int,
    path: str,
    *,
    timeout: float | None = 30.0,
    store: Store | None = None,
    xen: VchanAccess | None = None,
) -> tuple[VchanReader, VchanWriter]:
    """Connect to the server that domain `domid` has, or will have, at `path`.

    Keys of a server that is gone, or that has a client, are tried again until the time is over.

    Args:
        domid: the server's domain.
        path: in XenStore; if relative, below /local/domain/DOMID, as `listen` has it.
        timeout: seconds; None: for ever.
        store: by default one of its own.
        xen: opens handles; `xenpy.testing` has others.

    Raises:
        XenTimeoutError: there was no server to be had; the hint says what there was.
        PeerError: the server's keys or page make no sense; nothing is held.
        XenError: ESRCH, there is no such domain; ENOMEM; no XenStore, no Xen.
    """
    async with AsyncExitStack() as held:
        if store is None:
            store = await held.enter_async_context(Store.open())
        server = DomId(domid)
        where = absolute(path, server)
        access = xen or NativeVchan()
        channel = await joined(
            store, server, where, timeout,
            lambda keys: Channel.join(access, server, keys, Ports(access.open_evtchn())),
        )  # fmt: skip
        link = Link(channel)
        link.guard = asyncio.create_task(
            _guard(held.pop_all(), store, server, link), name=f"vchan {where}"
        )
    return VchanReader(link), VchanWriter(link, server, where)


async def joined(
    store: Store, server: DomId, path: str, timeout: float | None, join: Callable[[Keys], T]
) -> T:
    """What `join` makes of the server's keys, as soon as it can; tried again, since a server that
    keeps its channel for the next client (libxenvchan's `server_persist`) tells nobody when that
    is free.

    Raises:
        as `open_connection`.
    """
    limit = asyncio.timeout(timeout)
    pause = RETRY_FIRST
    refused: XenError | None = None
    try:
        async with limit:
            while True:
                keys = await store.wait(lambda tx: published(tx, path))
                try:
                    return join(keys)
                except XenError as error:
                    if error.errno not in LED_NOWHERE or error.operation.endswith("_open"):
                        raise
                    refused = error
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_LIMIT)
    except TimeoutError:
        if not limit.expired():
            raise
        hint = "no server has published it for this domain"
        if refused is not None:
            hint = f"its server is gone, or has another client: {refused}"
        raise XenTimeoutError(
            errno.ETIMEDOUT, "open_connection", hint, domid=server, path=path, seconds=timeout
        ) from None


async def _guard(held: AsyncExitStack, store: Store, server: DomId, link: Link) -> None:
    async with held:
        await watch_domain(store, server, link.lost)
        # What is held goes with the link, which cancels this.
        await asyncio.Event().wait()
