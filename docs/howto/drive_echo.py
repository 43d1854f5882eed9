# SPDX-License-Identifier: MIT
"""Both halves of the echo driver in one process, over a fake Xen and a fake xenstored."""

from __future__ import annotations

import asyncio
from select import select

from echo_driver import DRIVER, LAYOUT

from xenpy.attach import attach, detach
from xenpy.backend import XenAccess
from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantShare
from xenpy.ring import FrontRing
from xenpy.service import Service
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DOM0, DomId
from xenpy.xenstore import NotYet, Reader, Store


async def ask(
    store: Store, domid: DomId, share: GrantShare, channels: EventChannels, request: bytes
) -> list[bytes]:
    """The frontend's half, and the toolstack's: attach, connect, ask, close, detach."""
    ends = await attach(store, domid, DRIVER.plan({}, DRIVER.kind))
    page = share.share(DOM0, 1)
    ring, port = FrontRing(page, LAYOUT), channels.bind_unbound(DOM0)
    for key, value in ("ring-ref", page.refs[0]), ("event-channel", port), ("state", 3):
        await store.write(f"{ends.frontend}/{key}", value)

    async def connected(reader: Reader) -> None:
        if await reader.get(f"{ends.backend}/state") != "4":
            raise NotYet

    await store.wait(connected, timeout=10)
    if ring.put([request]):
        channels.notify(port)
    while not (answers := ring.take()):
        await asyncio.to_thread(select, [channels], [], [], 10)
        channels.unmask(channels.pending())
    await store.write(f"{ends.frontend}/state", 6)
    await detach(store, ends)
    return answers


async def serve_and_ask(
    store: Store, backend: XenAccess, domid: DomId, frontend: tuple[GrantShare, EventChannels]
) -> list[bytes]:
    """Serve in this process what is asked in it."""
    service = Service(store, DRIVER.kind, DRIVER.backend, xen=backend)
    serving = asyncio.create_task(service.run())
    try:
        with frontend[0] as share, frontend[1] as channels:
            return await ask(store, domid, share, channels, b"drawkcab")
    finally:
        serving.cancel()
        await asyncio.wait([serving])


async def over_fakes() -> None:
    xen, domid = FakeXen(), DomId(1)
    guest = xen.domain(domid)
    async with FakeXenstored() as fake, Store.open(fake.path) as store:
        fake.introduce(domid)
        frontend = guest.open_share(), guest.open_evtchn()
        print(await serve_and_ask(store, xen.domain(DOM0), domid, frontend))
    print("held:", dict(xen.census()))
    xen.close()


if __name__ == "__main__":
    asyncio.run(over_fakes())
