# SPDX-License-Identifier: MIT
# The frontend of `template`: run it in the guest.
"""Have a few bytes turned around and summed, while a nap is taken."""

import asyncio
import os
from typing import Final

# One declaration for both halves: the file with the protocol goes into the guest as well.
from template import NAP, REVERSE, SUM, TEMPLATE, Request, Response

from xenpy import connect
from xenpy.peer_keys import flag, number
from xenpy.ring_frontend import Connection

PATIENT: Final = 500
"""Milliseconds: the longest nap that this frontend wants to wait for."""


async def ask(device: Connection[Request, Response]) -> None:
    # The backend's keys.  It is no more to be trusted than a guest: here as well `flag` and
    # `number` take what they are called, or raise a PeerError.
    naps = flag(device.backend, "feature-nap")
    longest = min(number(device.backend, "max-nap", 0), PATIENT)

    # A page of ours that the backend's domain may look at, and write; given back at the end of
    # `with`, unless a request that names it is still in flight.
    with device.grant() as page:
        page[:5] = b"hello"

        # The nap comes first and is answered last: responses find their requests by the id,
        # which must be one that is not in flight.
        napping = device.request(Request(id=1, ref=0, length=longest if naps else 0, operation=NAP))
        nap = asyncio.create_task(napping)

        turned = await device.request(Request(2, page.ref, 5, REVERSE))
        if turned.status:
            # -errno, as the backend's `handle` raised it.
            raise OSError(-turned.status, os.strerror(-turned.status))
        summed = await device.request(Request(3, page.ref, 5, SUM))
        print(page[:5], summed.value, "nap", (await nap).value)


async def run() -> None:
    # Connected at the end of this line, or it raises; closed at the end of the block.  `features`
    # are keys of ours that the backend's `connect` looks at.
    async with connect(TEMPLATE, features={"max-nap": PATIENT}) as device:
        await ask(device)


if __name__ == "__main__":
    asyncio.run(run())
