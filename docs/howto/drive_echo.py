# SPDX-License-Identifier: MIT
"""Both halves of the echo driver in one process, over a fake Xen and a fake xenstored."""

from __future__ import annotations

import asyncio
from select import select

from echo_driver import DRIVER, LAYOUT

from xenpy.attach import attach, detach
from xenpy.ring import FrontRing
from xenpy.service import Service
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DOM0, DomId
from xenpy.xenstore import NotYet, Reader, Store


async def main() -> None:
    xen, domid = FakeXen(), DomId(1)
    guest = xen.domain(domid)
    async with FakeXenstored() as fake, Store.open(fake.path) as store:
        fake.introduce(domid)
        service = Service(store, DRIVER.kind, DRIVER.backend, xen=xen.domain(DOM0))
        serving = asyncio.create_task(service.run())
        ends = await attach(store, domid, DRIVER.plan({}, DRIVER.kind))
        with guest.open_share() as share, guest.open_evtchn() as channels:
            page = share.share(DOM0, 1)
            ring = FrontRing(page, LAYOUT)
            port = channels.bind_unbound(DOM0)
            for key, value in ("ring-ref", page.refs[0]), ("event-channel", port), ("state", 3):
                await store.write(f"{ends.frontend}/{key}", value)

            async def connected(reader: Reader) -> None:
                if await reader.get(f"{ends.backend}/state") != "4":
                    raise NotYet

            await store.wait(connected, timeout=10)
            if ring.put([b"drawkcab"]):
                channels.notify(port)
            while not (answers := ring.take()):
                await asyncio.to_thread(select, [channels], [], [], 10)
                channels.unmask(channels.pending())
            print(answers)
            await store.write(f"{ends.frontend}/state", 6)
            await detach(store, ends)
        serving.cancel()
    print("held:", dict(xen.census()))
    xen.close()


asyncio.run(main())
