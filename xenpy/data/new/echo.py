# SPDX-License-Identifier: MIT
# The protocol of `echo`, and its backend: xenpy run echo.py
"""A device that turns bytes around, in a page of the guest's."""

from typing import NamedTuple

from xenpy import Backend, RingProtocol
from xenpy.wire import i16, u16, u32, u64


class Request(NamedTuple):
    """What the frontend asks.  All of it is the guest's to choose: check it."""

    id: u64
    ref: u32  # a grant reference: the page
    length: u16  # how many of its bytes


class Response(NamedTuple):
    """What the backend answers.  `status` is 0, or -errno of what `handle` raised."""

    id: u64
    status: i16


class Echo(Backend[Request, Response]):
    """One device: made when it is attached, kept while frontends come and go."""

    protocol = RingProtocol("echo", Request, Response)

    def handle(self, request: Request) -> Response:
        content = self.read(request.ref, request.length)
        self.write(request.ref, content[::-1])
        return Response(request.id, 0)
