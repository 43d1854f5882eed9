# SPDX-License-Identifier: MIT
"""The frontend of pigeon.py: python3 send_note.py 'hello'"""

import asyncio
import os
import sys

from pigeon import PIGEON, Request

from xenpy import connect
from xenpy.peer_keys import number


async def send(text: str) -> None:
    note = text.encode()
    async with connect(PIGEON) as loft:
        most = number(loft.backend, "max-note")
        if len(note) > most:
            sys.exit(f"a pigeon of theirs carries {most} bytes")
        with loft.grant(writable=False) as page:
            page[: len(note)] = note
            answer = await loft.request(Request(1, page.ref, len(note)))
    if answer.status:
        sys.exit(os.strerror(-answer.status))
    print(f"coo: flight {answer.flight}")


asyncio.run(send(sys.argv[1]))
