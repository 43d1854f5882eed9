# SPDX-License-Identifier: MIT
"""A lamp that the operator may limit, also while it burns.  Serve it with: xenpy run dimmer.py"""

from types import MappingProxyType
from typing import NamedTuple

from xenpy import Backend, RingProtocol
from xenpy.backend import DeviceError, Keys
from xenpy.wire import i16, u32, u64


class Request(NamedTuple):
    id: u64
    level: u32


class Response(NamedTuple):
    id: u64
    level: u32
    status: i16


DIMMER = RingProtocol("dimmer", Request, Response)


class Dimmer(Backend[Request, Response]):
    protocol = DIMMER
    settings = MappingProxyType({"max-level": "how bright it may become"})
    features = MappingProxyType({"max-level": 10})  # unless the operator says otherwise

    async def reconfigure(self) -> Keys:
        if self.limit() > 100:
            raise DeviceError("a lamp has 100 levels")
        return {}

    def limit(self) -> int:
        return int(self.context.backend_keys.get("max-level", 10))

    def handle(self, request: Request) -> Response:
        return Response(request.id, min(request.level, self.limit()), 0)
