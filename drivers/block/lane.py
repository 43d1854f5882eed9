# SPDX-License-Identifier: MIT
"""One queue of a disk: an engine of some tier, the thread that runs it, and what it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from xenpy.backend import DeviceContext, NativeXen
from xenpy.drivers.block.callbacks import StoreCallbacks
from xenpy.drivers.block.disk_memory import DiskMemory
from xenpy.drivers.block.frontend_keys import QueueKeys
from xenpy.drivers.block.native import EngineParts, EngineState, NativeQueue
from xenpy.drivers.block.protocol import SECTOR_SIZE, Disk
from xenpy.drivers.block.queue import BlockQueue
from xenpy.drivers.block.ring_engine import RingEngine
from xenpy.drivers.block.store import NativeKind, NativeStore, Store
from xenpy.drivers.block.worker import WorkerQueue
from xenpy.runtime import QueueThread
from xenpy.trace import Trace

__all__ = ["TIERS", "Lane", "Shared"]

TIERS: Final = ("auto", "worker", "native", "callback", "batch")


@dataclass(frozen=True, slots=True)
class Shared:
    """What all queues of a disk have in common.

    Attributes:
        context: of the device.
        store: the disk.
        disk: what requests are checked against at first.
        memory: what they share besides, in C.
        tier: one of `TIERS`.
    """

    context: DeviceContext
    store: Store
    disk: Disk
    memory: DiskMemory
    tier: str


class Lane:
    """A queue from before its start until its counts have been taken.

    Args:
        shared: with the other queues.
        keys: what the frontend published for this one, checked.
        name: of the thread.
        on_failure: called in the event loop when the engine has failed.

    Attributes:
        trace: what the ring carries, recorded while somebody wants that.
    """

    def __init__(
        self,
        shared: Shared,
        keys: QueueKeys,
        name: str,
        on_failure: Callable[[Exception], None],
    ) -> None:
        # Until it is a lane, nobody would retire it.
        with ExitStack() as held:
            self.trace = Trace()
            held.callback(self.trace.close)
            self._engine = _choose(shared, keys, self.trace)
            held.callback(self._engine.release)
            self._thread = QueueThread(self._engine, name, on_failure)
            held.pop_all()

    @property
    def where(self) -> str:
        """Where it is served, for the log."""
        return self._engine.where

    async def start(self) -> None:
        """See `QueueThread.start`."""
        await self._thread.start()

    async def stop(self) -> None:
        """See `QueueThread.stop`."""
        await self._thread.stop()

    def resize(self, sectors: int) -> None:
        """Check requests against another size from the next batch on."""
        self._engine.resize(sectors)

    def counters(self) -> Mapping[str, int]:
        return self._engine.counters()

    def retire(self) -> Mapping[str, int]:
        """Let go of what the engine has left, once it has stopped.  Returns the last counts."""
        counters = self._engine.counters()
        self._engine.release()
        self.trace.close()
        return counters


def _choose(shared: Shared, keys: QueueKeys, trace: Trace) -> RingEngine:
    """By an engine in C, unless somebody asked otherwise.

    It counts sectors of 512 bytes, which all but a few frontends do.
    """
    context, store, disk = shared.context, shared.store, shared.disk
    if shared.tier == "batch" or disk.unit != SECTOR_SIZE:
        return BlockQueue(context, keys, store, disk, shared.memory, trace)
    native = None if shared.tier == "callback" else store.native
    callbacks = None
    state = EngineState(disk.sectors)
    if native is None:
        native = NativeStore(NativeKind.CALLBACK, -1, store.size, store.readonly)
        try:
            callbacks = StoreCallbacks(context, store)
        except BaseException:
            state.close()
            raise
    parts = EngineParts(context, keys, native, disk, shared.memory, state, trace)
    # A process of its own needs handles of its own, which only the running Xen gives it.
    alone = shared.tier == "auto" and isinstance(shared.context.xen, NativeXen)
    if callbacks is None and (alone or shared.tier == "worker"):
        return WorkerQueue(parts)
    return NativeQueue(parts, callbacks)
