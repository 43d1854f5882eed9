# SPDX-License-Identifier: MIT
"""One blkif ring and the thread's work on it: take, check, carry out, answer, notify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from operator import sub

from xenpy.backend import DeviceContext
from xenpy.drivers.block.datapath import BATCH_LIMIT, Counters, Datapath
from xenpy.drivers.block.disk_memory import DiskMemory
from xenpy.drivers.block.frontend_keys import QueueKeys
from xenpy.drivers.block.protocol import RSP_ERROR, Disk, Indirect, Refusal, Request
from xenpy.drivers.block.ring_engine import RingEngine
from xenpy.drivers.block.ring_handles import RingHandles
from xenpy.drivers.block.store import Store
from xenpy.ring import BackRing
from xenpy.runtime import Queue
from xenpy.trace import Trace
from xenpy.types import Port

__all__ = ["BlockQueue"]


class BlockQueue(Queue, RingEngine):
    """Owns the ring, the data pages and the port of one queue; see `runtime.Queue`.

    Args:
        context: of the device.
        keys: what the frontend published, checked.
        store: the disk, which other queues use at the same time.
        disk: what requests are checked against at first.
        memory: what all queues of the disk share.
        trace: where what the ring carries is recorded, while somebody wants that.
    """

    where = "in Python"

    def __init__(
        self,
        context: DeviceContext,
        keys: QueueKeys,
        store: Store,
        disk: Disk,
        memory: DiskMemory,
        trace: Trace,
    ) -> None:
        self._context = context
        self._keys = keys
        self._store = store
        self._disk = disk
        self._memory = memory
        self._trace = trace
        self._counters = Counters()
        self._told = 0, 0, 0, 0, 0
        self._handles = RingHandles(context, keys)
        self._held = ExitStack()
        self._ring: BackRing
        self._datapath: Datapath
        self._port: Port

    def open(self) -> None:
        context, keys = self._context, self._keys
        self._held.callback(self._handles.close)
        handles = self._handles.open()
        self.channels = handles.channels
        self._port = handles.port
        self._ring = BackRing(handles.ring, keys.abi.layout, nr_pages=len(keys.ring_refs))
        self._datapath = Datapath(
            context, handles.grants, self._store, self._counters, persistent=keys.persistent
        )
        self._held.callback(self._datapath.close)

    def service(self) -> int:
        slots = self._ring.take(BATCH_LIMIT)
        if not slots and self._ring.final_check():
            slots = self._ring.take(BATCH_LIMIT)
        if not slots:
            return 0
        taken = self._trace.taken()
        abi = self._keys.abi
        parsed = self._parse(slots)
        accepted = [item for item in parsed if isinstance(item, Request)]
        refused = [item for item in parsed if isinstance(item, Refusal)]
        answer = abi.reply.pack
        responses = [
            answer(request.id, request.operation, status)
            for request, status in zip(accepted, self._datapath.execute(accepted), strict=True)
        ]
        responses += [self._refuse(refusal) for refusal in refused]
        if taken:
            self._record(taken, slots, parsed, responses)
        self._counters.requests += len(slots)
        self._counters.batches += 1
        self._tell_xentop()
        if self._ring.push(responses):
            self._counters.notifications += 1
            self.channels.notify(self._port)
        return len(slots)

    def _parse(self, slots: Sequence[bytes]) -> list[Request | Refusal]:
        abi, disk = self._keys.abi, self._disk
        parsed = [abi.parse(slot, disk) for slot in slots]
        indirect = [item for item in parsed if isinstance(item, Indirect)]
        tables = iter(self._datapath.copy_tables(indirect) if indirect else ())
        return [
            self._resolve(item, next(tables), disk) if isinstance(item, Indirect) else item
            for item in parsed
        ]

    def _resolve(self, item: Indirect, table: bytes | None, disk: Disk) -> Request | Refusal:
        if table is None:
            reason = "the pages of its segments cannot be read"
            return Refusal(item.id, item.operation, RSP_ERROR, reason)
        return self._keys.abi.resolve(item, table, disk)

    def resize(self, sectors: int) -> None:
        self._disk = replace(self._disk, sectors=sectors)

    def counters(self) -> Mapping[str, int]:
        return asdict(self._counters) | {"wakeups": self.wakeups}

    def release(self) -> None:
        """Nothing outlives the thread."""

    def close(self) -> None:
        # In reverse: data pages, port, ring, handles.  The I/O has ended: it is synchronous.
        self._held.close()

    def _tell_xentop(self) -> None:
        now, told = self._counters, self._told
        self._told = now.rd_req, now.rd_sect, now.wr_req, now.wr_sect, now.errors
        self._memory.add(*map(sub, self._told, told))

    def _record(
        self,
        taken: int,
        slots: Sequence[bytes],
        parsed: Sequence[Request | Refusal],
        responses: Sequence[bytes],
    ) -> None:
        """In ring order; of the responses those to what was refused come last."""
        accepted = iter(responses)
        refused = iter(responses[sum(isinstance(item, Request) for item in parsed) :])
        first = self._ring.consumed - len(slots)
        for index, (slot, item) in enumerate(zip(slots, parsed, strict=True), first):
            sectors, answers = 0, refused
            if isinstance(item, Request):
                sectors, answers = item.sectors, accepted
            self._trace.put(taken, index, sectors, slot, next(answers))

    def _refuse(self, refusal: Refusal) -> bytes:
        self._counters.refused += 1
        self._counters.errors += 1
        self._context.log.info("request %#x refused: %s", refusal.id, refusal.reason)
        return self._keys.abi.response(refusal.id, refusal.operation, refusal.status)
