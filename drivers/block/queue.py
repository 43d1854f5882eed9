# SPDX-License-Identifier: MIT
"""One blkif ring and the thread's work on it: take, check, carry out, answer, notify."""

from __future__ import annotations

from contextlib import ExitStack

from xenpy.backend import DeviceContext
from xenpy.drivers.block.datapath import BATCH_LIMIT, Counters, Datapath
from xenpy.drivers.block.frontend_keys import FrontendKeys
from xenpy.drivers.block.protocol import Disk, Refusal, Request
from xenpy.drivers.block.store import Store
from xenpy.evtchn import EventChannels
from xenpy.ring import BackRing
from xenpy.runtime import Queue
from xenpy.types import DOM0, Port

__all__ = ["BlockQueue"]


class BlockQueue(Queue):
    """Owns the ring, the data pages and the port of one frontend; see `runtime.Queue`.

    Args:
        context: of the device.
        keys: what the frontend published, checked.
        store: the disk; used by this queue alone until `close` has returned.
        disk: what requests are checked against.
        counters: counted up here.
    """

    def __init__(
        self,
        context: DeviceContext,
        keys: FrontendKeys,
        store: Store,
        disk: Disk,
        counters: Counters,
    ) -> None:
        self._context = context
        self._keys = keys
        self._store = store
        self._disk = disk
        self._counters = counters
        self._held = ExitStack()
        self._ring: BackRing
        self._datapath: Datapath
        self._channels: EventChannels
        self._port: Port

    def open(self) -> EventChannels:
        context, keys = self._context, self._keys
        domid = context.domid
        grants = context.xen.open_grants()
        # Deferred like its mappings: it cannot close before the last of them.
        self._held.callback(context.deferred.close, grants, context.name)
        self._channels = self._held.enter_context(context.xen.open_evtchn())
        if domid != DOM0:
            # From here on this handle can bind to the frontend's domain only.  Linux knows no
            # handle restricted to domain 0 (EINVAL), the frontend of a loopback.
            self._channels.restrict(domid)
        pages = grants.map(domid, keys.ring_refs, writable=True)
        self._held.callback(context.deferred.close, pages, context.name)
        self._ring = BackRing(pages, keys.abi.layout, nr_pages=len(keys.ring_refs))
        self._datapath = Datapath(
            context, grants, self._store, self._counters, persistent=keys.persistent
        )
        self._held.callback(self._datapath.close)
        self._port = self._channels.bind_interdomain(domid, keys.event_channel)
        return self._channels

    def service(self) -> int:
        slots = self._ring.take(BATCH_LIMIT)
        if not slots and self._ring.final_check():
            slots = self._ring.take(BATCH_LIMIT)
        if not slots:
            return 0
        abi = self._keys.abi
        parsed = [abi.parse(slot, self._disk) for slot in slots]
        accepted = [item for item in parsed if isinstance(item, Request)]
        refused = [item for item in parsed if isinstance(item, Refusal)]
        responses = [
            abi.response(request.id, request.operation, status)
            for request, status in zip(accepted, self._datapath.execute(accepted), strict=True)
        ]
        responses += [self._refuse(refusal) for refusal in refused]
        self._counters.requests += len(slots)
        self._counters.batches += 1
        if self._ring.push(responses):
            self._counters.notifications += 1
            self._channels.notify(self._port)
        return len(slots)

    def close(self) -> None:
        # In reverse: port, data pages, ring, handles.  The I/O has ended: it is synchronous.
        self._held.close()

    def _refuse(self, refusal: Refusal) -> bytes:
        self._counters.refused += 1
        self._counters.errors += 1
        self._context.log.info("request %#x refused: %s", refusal.id, refusal.reason)
        return self._keys.abi.response(refusal.id, refusal.operation, refusal.status)
