# SPDX-License-Identifier: MIT
# The protocol of `template`, and its backend: xenpy run template.py
"""A device to begin with: it turns bytes around in a page of the guest's, sums them, and naps."""

import asyncio
import errno
from types import MappingProxyType
from typing import Final, NamedTuple

# Nothing but the public API.  `xenpy protocol template.py` prints what these two records come to
# in memory; the other half may as well be C.
from xenpy import Backend, RingProtocol
from xenpy.backend import DeviceContext
from xenpy.errors import PeerError
from xenpy.peer_keys import number
from xenpy.ring_backend import driver_of
from xenpy.wire import i16, u8, u16, u32, u64

# What `operation` may be.  Numbers are for ever: other domains were built with them.
REVERSE: Final = 0
SUM: Final = 1
NAP: Final = 2

LONGEST: Final = 1000
"""Milliseconds of a nap.  A guest chooses the number; how long it may be is for us to say."""


class Request(NamedTuple):
    """What the frontend asks.  All of it is the guest's to choose: check it."""

    id: u64  # says which answer belongs to it; the frontend's to choose
    ref: u32  # a grant reference: the page that it is about
    length: u16  # bytes of the page; of a nap, milliseconds
    operation: u8


class Response(NamedTuple):
    """What the backend answers.

    `status` is 0, or -errno of what `handle` raised: the framework makes that answer.
    """

    id: u64
    value: u32  # of SUM the sum, of NAP which one it was
    status: i16


# The name is the kind in XenStore: device/template in the guest, backend/template here.
TEMPLATE: Final = RingProtocol("template", Request, Response)


class Template(Backend[Request, Response]):
    """One device: made when it is attached, kept while frontends come and go."""

    protocol = TEMPLATE

    # Keys that a frontend can read before it connects.  A new operation gets a key of its own,
    # so that a frontend knows without trying whether this backend has it.
    features = MappingProxyType({"feature-nap": 1, "max-nap": LONGEST})

    # How many requests are in work at a time: what one guest can make this process do.
    max_inflight = 16

    def __init__(self, context: DeviceContext) -> None:
        super().__init__(context)
        # State belongs to the object, since there is one for each device, and never to the class.
        self.naps = 0
        self.longest = LONGEST

    async def connect(self) -> None:
        # A frontend has come.  Its keys are text that anybody may have written: `number` takes
        # nothing but a number, and raises a PeerError, which closes this device and no other.
        self.longest = number(self.frontend, "max-nap", LONGEST)
        if self.longest > LONGEST:
            raise PeerError(f"max-nap is {self.longest}, more than {LONGEST}")
        # The next frontend may be another program: it finds the device as the first one did.
        self.naps = 0

    async def disconnect(self) -> None:
        # It has gone, nothing of its is in work, no page is mapped.  `log` is bounded: a guest
        # that comes and goes all day does not fill the disk.
        self.context.log.info("%d naps", self.naps)

    # `async def`, since one of them waits; others are taken meanwhile.  Without, `def` will do.
    async def handle(self, request: Request) -> Response:
        # `request` is a private copy: it stays what it was when it was checked.
        if request.operation == REVERSE:
            return self.reverse(request)
        if request.operation == SUM:
            return self.sum(request)
        if request.operation == NAP:
            return await self.nap(request)
        # Another version of the protocol, or nonsense: answered with EOPNOTSUPP.
        raise NotImplementedError

    def reverse(self, request: Request) -> Response:
        # The page itself, as long as `with` lasts.  A reference that was not granted, or not for
        # writing, raises here, and the guest is told.  It may write while we look: each byte is
        # read once, into `bytes`, and only those are used.
        with self.map(request.ref, writable=True) as page:
            if request.length > len(page):
                raise OSError(errno.EINVAL, "more than a page")
            content = bytes(page[: request.length])
            page[: request.length] = content[::-1]
        return Response(request.id, 0, 0)

    def sum(self, request: Request) -> Response:
        # A copy, for what is short or is looked at more than once.  It needs no check of the
        # length: what leaves the page is EINVAL.  A page that is granted for reading will do.
        content = self.read(request.ref, request.length)
        return Response(request.id, sum(content), 0)

    async def nap(self, request: Request) -> Response:
        # Whatever a guest can make us wait for has a limit.
        if request.length > self.longest:
            raise OSError(errno.EINVAL, "too long a nap")
        # Waits, and holds nobody up.  When the frontend goes away it is given two seconds, then
        # this `await` raises CancelledError: let it through.
        await asyncio.sleep(request.length / 1000)
        self.naps += 1
        return Response(request.id, self.naps, 0)


# How `xenpy serve template` finds it, once a package names this among its entry points:
# [project.entry-points."xenpy.drivers"]
# template = "template:DRIVER"
DRIVER: Final = driver_of(Template, TEMPLATE)
