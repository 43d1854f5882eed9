# SPDX-License-Identifier: MIT
"""A carrier pigeon: it takes a note from one domain to another, where there is no network."""

import asyncio
import errno
from types import MappingProxyType
from typing import NamedTuple

from xenpy import Backend, RingProtocol
from xenpy.wire import i16, u16, u32, u64

MAX_NOTE = 160  # bytes; more is too heavy
FLIGHT = 0.05  # seconds


class Request(NamedTuple):
    id: u64
    ref: u32  # the page that the note is in
    length: u16


class Response(NamedTuple):
    id: u64
    flight: u32  # which one of this connection it was
    status: i16


PIGEON = RingProtocol("pigeon", Request, Response)


class Pigeon(Backend[Request, Response]):
    protocol = PIGEON
    features = MappingProxyType({"max-note": MAX_NOTE})
    flights = 0

    async def connect(self) -> None:
        self.flights = 0

    async def handle(self, request: Request) -> Response:
        if request.length > MAX_NOTE:
            raise OSError(errno.EMSGSIZE, "too heavy for a pigeon")
        note = self.read(request.ref, request.length)
        await asyncio.sleep(FLIGHT)
        self.flights += 1
        # %r: a note may have anything in it, also what a terminal takes for a command.
        self.context.log.info("a note: %r", note)
        return Response(request.id, self.flights, 0)
