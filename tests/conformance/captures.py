# SPDX-License-Identifier: MIT
"""Captures that nobody tapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xenpy.capture import Head, Tail, Writer
from xenpy.drivers.block.protocol import ABI_X86_64, OP_DISCARD, OP_INDIRECT, OP_READ, RSP_OKAY
from xenpy.trace import RECORD, TraceRecord

__all__ = ["HEAD", "Seen", "write_capture"]

HEAD = Head("vbd3/1/51712", "block", ABI_X86_64.name, 2)


@dataclass(frozen=True)
class Seen:
    """A request of a frontend in x86_64.

    Attributes:
        taken, answered: in ms.
    """

    operation: int
    sector: int = 0
    sectors: int = 0
    status: int = RSP_OKAY
    taken: int = 0
    answered: int = 0
    ring: int = 0

    def record(self) -> TraceRecord:
        abi, operation = ABI_X86_64, self.operation
        if operation == OP_DISCARD:
            request = abi.pack_discard(1, self.sector, self.sectors)
        elif operation == OP_INDIRECT:
            request = abi.pack_indirect(OP_READ, 1, self.sector, 1, [9])
        else:
            spans = [(9, 0, self.sectors - 1)] if self.sectors else []
            request = abi.pack_request(operation, 1, self.sector, spans)
        response = abi.response(1, operation, self.status)
        times = self.taken * 1_000_000, self.answered * 1_000_000
        sizes = len(request), len(response)
        return TraceRecord(*times, self.sectors, 0, *sizes, request, response)


def write_capture(path: Path, *seen: Seen, head: Head = HEAD) -> Sequence[TraceRecord]:
    """Write a capture, each record a chunk of its own."""
    records = [one.record() for one in seen]
    with path.open("wb") as file:
        writer = Writer(file, head)
        for one, record in zip(seen, records, strict=True):
            writer.add(one.ring, RECORD.pack(*record))
        writer.end(Tail(len(records), 0, 1.0))
    return records
