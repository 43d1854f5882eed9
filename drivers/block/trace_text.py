# SPDX-License-Identifier: MIT
"""What a recorded request and its response say, by name: for `xenpy tap`.

It shows what a guest wrote, right or wrong; nothing is checked and nothing raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from xenpy.driver import Peeked, Value
from xenpy.drivers.block.frontend_keys import MAX_QUEUES, parse_queues
from xenpy.drivers.block.protocol import (
    ABI_NATIVE,
    ABIS,
    MAX_SEGMENTS,
    OP_DISCARD,
    OP_INDIRECT,
    OPERATION_NAMES,
    RSP_EOPNOTSUPP,
    RSP_ERROR,
    RSP_OKAY,
    SEGMENT_SIZE,
    SEGMENTS_PER_PAGE,
)
from xenpy.peek import PeekLayout
from xenpy.trace import TraceRecord

__all__ = ["STATUSES", "decode", "peek"]

STATUSES: Final = {RSP_OKAY: "okay", RSP_ERROR: "error", RSP_EOPNOTSUPP: "eopnotsupp"}


def decode(layout: str, record: TraceRecord) -> Mapping[str, Value]:
    """See `Driver.decode`.

    Returns:
        op, id, sector; sectors, as the backend has found them, or else in the slot; nr_segments,
        and those that are in the slot as [gref, first, last]; indirect, the pages of an indirect
        request's; flag, a discard's; status.
    """
    abi = ABIS.get(layout, ABI_NATIVE)
    slot = record.request
    operation, count, _, ident, sector = abi.header.unpack(slot)
    _, _, status = abi.unpack_response(record.response)
    fields: dict[str, Value] = {}
    if operation == OP_DISCARD:
        _, flag, _, _, _, sectors = abi.discard.unpack(slot)
        fields = {"sectors": sectors, "flag": flag}
    elif operation == OP_INDIRECT:
        _, inner, count, _, sector, _, *grefs = abi.indirect.unpack(slot)
        operation = inner
        pages = -(-count // SEGMENTS_PER_PAGE)
        fields = {"nr_segments": count, "indirect": [grefs[:pages]]}
        if record.detail:
            fields = {"sectors": record.detail, **fields}
    else:
        end = abi.header.size + min(count, MAX_SEGMENTS) * SEGMENT_SIZE
        segments = [list(one) for one in abi.segment.iter_unpack(slot[abi.header.size : end])]
        sectors = record.detail or sum(max(0, last - first + 1) for _, first, last in segments)
        fields = {"sectors": sectors, "nr_segments": count, "segments": segments}
    return {
        "op": OPERATION_NAMES.get(operation, f"operation-{operation}"),
        "id": ident,
        "sector": sector,
        **fields,
        "status": STATUSES.get(status, str(status)),
    }


def peek(keys: Mapping[str, str]) -> Peeked:
    """See `Driver.peek`."""
    queues = parse_queues(keys, MAX_QUEUES)
    abi = queues[0].abi

    def answers(request: bytes, response: bytes) -> bool:
        _, operation, status = abi.unpack_response(response)
        # An indirect request's inner operation is what blkback names.
        return operation in request[: 1 + (request[0] == OP_INDIRECT)] and status in STATUSES

    ids = abi.header.offsets["id"], abi.reply.offsets["id"]
    layout = PeekLayout(abi.layout, *ids, answers)
    return Peeked(abi.name, layout, [queue.ring_refs for queue in queues])
