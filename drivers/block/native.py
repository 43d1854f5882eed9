# SPDX-License-Identifier: MIT
"""The engine in C serves the ring: in this process here, in one of its own in `worker`.

`engine/engine.h` declares what is packed here; tests/abi compares the two.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from xenpy.backend import DeviceContext
from xenpy.calls import Calls
from xenpy.drivers.block._engine import ffi, lib
from xenpy.drivers.block.callbacks import StoreCallbacks
from xenpy.drivers.block.datapath import BATCH_LIMIT
from xenpy.drivers.block.disk_memory import DiskMemory
from xenpy.drivers.block.frontend_keys import QueueKeys
from xenpy.drivers.block.grant_cache import MAX_PAGES
from xenpy.drivers.block.protocol import ABI_X86_32, MAX_INDIRECT_SEGMENTS, Disk
from xenpy.drivers.block.ring_engine import RingEngine
from xenpy.drivers.block.ring_handles import RingHandles
from xenpy.drivers.block.store import NativeKind, NativeStore
from xenpy.errors import PeerError, XenError
from xenpy.memory import LocalMemory
from xenpy.runtime import StopSignal
from xenpy.trace import Trace

__all__ = [
    "CONFIG",
    "COUNTERS",
    "EngineParts",
    "EngineState",
    "NativeEngine",
    "NativeQueue",
]

CONFIG: Final = struct.Struct("=12I2i2IQ")
"""struct block_config."""
SECTORS, STOP, FIRST_COUNTER = 16, 24, 32
"""Offsets in struct block_state."""
COUNTERS: Final = (
    "rd_req", "wr_req", "f_req", "ds_req", "rd_sect", "wr_sect", "ds_sect", "requests",
    "indirect", "batches", "wakeups", "notifications", "refused", "errors", "flushes_failed",
    "grants_mapped", "grants_unmapped", "grants_copied",
)  # fmt: skip
"""struct block_counters, in order."""

PERSISTENT, READONLY, DISCARD, BARRIER, MAPPED, SECURE = 1, 2, 4, 8, 16, 32


KINDS: Final = {
    NativeKind.FILE: 0, NativeKind.MEMORY: 1, NativeKind.NULL: 2, NativeKind.CALLBACK: 3,
}  # fmt: skip
"""BLOCK_STORE_*."""


class EngineState:
    """A `struct block_state`: the engine's journal and counters, in memory of ours.

    Attributes:
        fd: of the memory.
    """

    def __init__(self, sectors: int) -> None:
        size = lib.block_state_size()
        self.fd, self._memory = LocalMemory.shareable("xenpy-block", size)
        self._view = self._memory.view()
        struct.pack_into("=II", self._view, 0, lib.BLOCK_VERSION, size)
        self._words = self._view.cast("I")
        self._longs = self._view.cast("Q")
        self.set_sectors(sectors)

    @property
    def address(self) -> int:
        return self._memory.address

    def set_sectors(self, sectors: int) -> None:
        """What requests are checked against from the next batch on: 512-byte sectors."""
        self._longs[SECTORS // 8] = sectors

    def stop(self) -> None:
        """Tell the engine to leave; then wake it."""
        self._words[STOP // 4] = 1

    def counters(self) -> Mapping[str, int]:
        first = FIRST_COUNTER // 8
        return dict(zip(COUNTERS, self._longs[first : first + len(COUNTERS)], strict=True))

    def close(self) -> None:
        for view in (self._longs, self._words, self._view):
            view.release()
        self._memory.close()
        os.close(self.fd)
        self.fd = -1


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What an engine in C is given, wherever it runs.

    Attributes:
        context: of the device.
        keys: what the frontend published, checked.
        store: the disk.
        disk: what requests are checked against at first.
        memory: what all queues of the disk share.
        state: the engine's own.
        trace: where it records what the ring carries, while somebody wants that.
    """

    context: DeviceContext
    keys: QueueKeys
    store: NativeStore
    disk: Disk
    memory: DiskMemory
    state: EngineState
    trace: Trace

    def config(
        self, stop_fd: int = -1, port: int = 0, start: int = 0, *, mapped: bool = False
    ) -> bytes:
        """A `struct block_config`.

        Args:
            stop_fd: readable means stop; -1 for a worker, which is sent a signal.
            port, start: ours, and rsp_prod as it was found; a worker finds them for itself.
            mapped: read a file through a mapping, which only a process of its own may do.
        """
        keys, disk = self.keys, self.disk
        flags = BARRIER | (PERSISTENT if keys.persistent else 0)
        flags |= (READONLY if disk.readonly else 0) | (DISCARD if disk.discard else 0)
        flags |= SECURE if disk.secure_discard else 0
        # O_DIRECT leaves the page cache out, which is what a mapping shows.
        flags |= MAPPED if mapped and not self.store.direct else 0
        return CONFIG.pack(
            lib.BLOCK_VERSION, CONFIG.size, self.context.domid, port,
            int(keys.abi is ABI_X86_32), len(keys.ring_refs), flags, MAX_INDIRECT_SEGMENTS,
            MAX_PAGES, BATCH_LIMIT, start, KINDS[self.store.kind], self.store.fd, stop_fd,
            disk.sector_size, 0, self.store.size,
        )  # fmt: skip

    def check(self, number: int) -> None:
        """
        Raises:
            PeerError, XenError: what an engine that ended with this errno has met.
        """
        if number == errno.EPROTO:
            raise PeerError("req_prod is out of bounds")
        if number:
            raise XenError(number, "block engine", "", device=self.context.name)


class NativeEngine(RingEngine):
    """Base of those that run the engine in C."""

    def __init__(self, parts: EngineParts) -> None:
        self._parts = parts

    def resize(self, sectors: int) -> None:
        self._parts.state.set_sectors(sectors)

    def counters(self) -> Mapping[str, int]:
        return self._parts.state.counters()

    def release(self) -> None:
        self._parts.state.close()


class NativeQueue(NativeEngine):
    """One blkif ring served in C, in this process; see `runtime.Engine`.

    Args:
        callbacks: of a store that is served by them; closed with this.
    """

    where = "native"

    def __init__(self, parts: EngineParts, callbacks: StoreCallbacks | None = None) -> None:
        super().__init__(parts)
        self._callbacks = callbacks
        if callbacks is not None:
            self.where = "native, its store in Python"
        self._handles = RingHandles(parts.context, parts.keys)
        self._start = 0

    def open(self) -> None:
        self._start = lib.block_engine_position(self._handles.open().ring.address)

    def serve(self, stop: StopSignal) -> None:
        parts, handles = self._parts, self._handles
        stop.tell(parts.state.stop)
        calls = Calls(handles.grants, handles.channels)
        callbacks = self._callbacks
        store = (0, ffi.NULL) if callbacks is None else (callbacks.memory.address, callbacks.handle)
        with LocalMemory(CONFIG.size) as config:
            with config.view() as view:
                view[:] = parts.config(stop.fd, handles.port, self._start)
            result = lib.block_engine_start(
                config.address, parts.state.address, calls.address, handles.ring.address,
                parts.memory.address, parts.trace.address, *store,
            )  # fmt: skip
        parts.check(-result)

    def close(self) -> None:
        self._handles.close()

    def release(self) -> None:
        super().release()
        if self._callbacks is not None:
            self._callbacks.close()
