# SPDX-License-Identifier: MIT
"""A store in Python below the engine in C: entered once for all reads and writes of a batch.

`engine/engine.h` declares the memory that both look at.  The store sees data in a pool of ours,
never a page of the guest's: what it keeps by mistake is stale, not unmapped.
"""

from __future__ import annotations

import errno
import struct
from typing import Final, cast

from xenpy._ffi.types import CData
from xenpy.backend import DeviceContext
from xenpy.drivers.block._engine import ffi, lib
from xenpy.drivers.block.store import Store
from xenpy.drivers.block.store_failure import errno_of
from xenpy.memory import LocalMemory

__all__ = ["CALL", "StoreCallbacks"]

CALL: Final = struct.Struct("=QIIIi")
"""struct block_call: offset, place, length, write, result."""
WORDS: Final = CALL.size // 4
RESULT: Final = WORDS - 1


class StoreCallbacks:
    """For one queue, whose thread runs the engine.

    Args:
        context: of the device.
        store: the disk, which other queues use at the same time.

    Attributes:
        memory: what the engine and the store share: the pool, and behind it the calls.
        handle: what the engine calls with; of no use after `close`.
    """

    def __init__(self, context: DeviceContext, store: Store) -> None:
        self._context = context
        self._store = store
        self.memory = LocalMemory(lib.block_callbacks_size())
        self._pool = self.memory.view(0, lib.BLOCK_POOL_BYTES)
        self._calls = self.memory.view(lib.BLOCK_POOL_BYTES)
        self._words = self._calls.cast("i")
        self.handle = ffi.new_handle(self)

    def transfer(self, count: int) -> None:
        """Carry out the first `count` calls."""
        pool, words, store = self._pool, self._words, self._store
        at = RESULT
        for offset, place, length, write, _ in CALL.iter_unpack(self._calls[: count * CALL.size]):
            try:
                with pool[place : place + length] as data:
                    if not write:
                        store.readinto(data, offset)
                    elif store.flush_failed:
                        raise OSError(errno.EIO, "an earlier flush failed: writes are lost")
                    else:
                        store.write(data, offset)
                words[at] = 0
            except Exception as error:
                what = f"{'write' if write else 'read'} of {length} bytes at {offset}"
                words[at] = -errno_of(error, self._context.log, what)
            at += WORDS

    def flush(self) -> int:
        """Returns 0 or -errno."""
        try:
            self._store.flush()
        except Exception as error:
            self._store.flush_failed = True
            return -errno_of(error, self._context.log, "flush")
        return 0

    def discard(self, offset: int, length: int) -> int:
        """Returns 0 or -errno."""
        try:
            self._store.discard(offset, length)
        except Exception as error:
            what = f"discard of {length} bytes at {offset}"
            return -errno_of(error, self._context.log, what)
        return 0

    def close(self) -> None:
        """Give the memory back, once no engine runs and the store has let go of it."""
        # It keeps this object alive.
        self.handle = ffi.NULL
        for view in (self._words, self._calls, self._pool):
            view.release()
        self._context.deferred.close(self.memory, self._context.name)


@ffi.def_extern("block_store_transfer")
def _transfer(handle: CData, count: int) -> None:
    cast("StoreCallbacks", ffi.from_handle(handle)).transfer(count)


@ffi.def_extern("block_store_flush", error=-errno.EIO)
def _flush(handle: CData) -> int:
    return cast("StoreCallbacks", ffi.from_handle(handle)).flush()


@ffi.def_extern("block_store_discard", error=-errno.EIO)
def _discard(handle: CData, offset: int, length: int) -> int:
    return cast("StoreCallbacks", ffi.from_handle(handle)).discard(offset, length)
