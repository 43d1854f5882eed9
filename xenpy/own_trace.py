# SPDX-License-Identifier: MIT
"""What a record of a protocol of your own says, for `xenpy tap`."""

from __future__ import annotations

from collections.abc import Mapping

from xenpy.driver import Decode, Value
from xenpy.ring_protocol import RequestT, ResponseT, RingProtocol
from xenpy.trace import REQUEST_LIMIT, RESPONSE_LIMIT, TraceRecord
from xenpy.wire import CAbi

__all__ = ["own_decode"]


def own_decode(protocol: RingProtocol[RequestT, ResponseT]) -> Decode:
    """Makes a `Driver.decode`; what did not fit into a record is left out."""

    def decode(layout: str, record: TraceRecord) -> Mapping[str, Value]:
        return protocol.codec(CAbi.of_protocol(layout)).known(
            record.request[: min(record.request_size, REQUEST_LIMIT)],
            record.response[: min(record.response_size, RESPONSE_LIMIT)],
        )

    return decode
