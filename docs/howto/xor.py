# SPDX-License-Identifier: MIT
"""A device that XORs a page of the guest's in place.  Serve it with: xenpy run xor.py"""

from typing import NamedTuple

from xenpy import Backend, RingProtocol
from xenpy.wire import i16, u8, u32, u64


class Request(NamedTuple):
    id: u64
    ref: u32
    key: u8


class Response(NamedTuple):
    id: u64
    status: i16


class Xor(Backend[Request, Response]):
    protocol = RingProtocol("xor", Request, Response)

    def handle(self, request: Request) -> Response:
        with self.map(request.ref, writable=True) as page:
            page[:] = bytes(byte ^ request.key for byte in page)
        return Response(request.id, 0)
