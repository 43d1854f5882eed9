# SPDX-License-Identifier: MIT
"""`xen:xvdb`: a disk that another backend serves to this domain; a proxy stands on it.

The frontend has an event loop in a thread of its own, so that no queue that waits for an answer
holds up the daemon's, and a connection to XenStore.  A backend that goes away and comes back
within `CONNECT_BOUND` costs what was in flight; what is asked for later waits that long.  One
that does not answer is waited for, as a disk is: what would a guest be told of a write that may
still be done?
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import threading
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Final, TypeVar

from xenpy.backend import DeviceError
from xenpy.drivers.block.front import BlockDevice
from xenpy.drivers.block.front_place import device_path, leave_to_the_kernel
from xenpy.drivers.block.store import (
    Buffer,
    Durability,
    Store,
    check_buffers,
    check_write,
    total,
)
from xenpy.errors import PeerError, XenError
from xenpy.frontend import FrontendAccess
from xenpy.xenstore import Store as XenStore

__all__ = ["FrontStore"]

T = TypeVar("T")

CONNECT_BOUND: Final = 8.0
"""Seconds that the backend may take until it serves; libxl waits 10 for us."""
HINT_LIMIT: Final = 1 << 20
"""Bytes: a larger block is no hint of use to a guest."""
SIZE_LIMIT: Final = 1 << 46
"""Bytes, 64 TiB: a filter may keep a bit for each few KiB."""
FREE_HINT: Final = "if that one has died, `xenpy block info %s --take-over` frees the disk"


class FrontStore(Store):
    """The disk at `place`: see `front_place.check_place`.

    Args:
        readonly: refuse writes, whatever the disk takes.
        store_path: of XenStore; None for the default.
        xen: opens the frontend's handles.

    Raises:
        DeviceError: there is no such disk, it does not connect, or is not to be written to.
        OSError: EBUSY, somebody else drives it; there is no XenStore.
    """

    parallel = True

    def __init__(
        self,
        place: str,
        *,
        readonly: bool,
        store_path: str | None = None,
        xen: FrontendAccess | None = None,
    ) -> None:
        self._place = place
        self._held = AsyncExitStack()
        self._durability = Durability()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        # A process that breaks off does not wait for a backend.
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"xen:{place}", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as error:
            self._loop.close()
            raise OSError(errno.EAGAIN, str(error)) from error
        try:
            self._device = self._run(self._open(store_path, xen))
            self._learn(readonly=readonly)
        except BaseException as error:
            self.close()
            if isinstance(error, PeerError):
                raise DeviceError(f"xen:{place}: {error}") from error
            if isinstance(error, XenError) and error.errno == errno.EBUSY:
                raise DeviceError(f"xen:{place}: {error}; {FREE_HINT % place}") from error
            raise

    async def _open(self, store_path: str | None, xen: FrontendAccess | None) -> BlockDevice:
        # Entered one by one: what `close` finds there is what has been opened.
        store = await self._held.enter_async_context(XenStore.open(store_path))
        path = device_path(self._place, await store.domid())
        leave_to_the_kernel(path)
        device = BlockDevice(store, path, xen=xen, timeout=CONNECT_BOUND, answer_bound=math.inf)
        return await self._held.enter_async_context(device)

    def _learn(self, *, readonly: bool) -> None:
        disk = self._device.disk
        if disk.readonly and not readonly:
            raise DeviceError(f"xen:{self._place} is read-only: attach it with mode=r")
        if disk.size < disk.sector_size:
            raise DeviceError(f"xen:{self._place} is empty: a disk has at least one sector")
        if disk.size > SIZE_LIMIT:
            raise DeviceError(f"xen:{self._place} says that it has {disk.size} bytes")
        self.readonly = readonly
        self.size = disk.size
        self.sector_size = disk.sector_size
        # Hints, but a foreign backend's: a guest is told nothing that makes no sense.
        physical = disk.physical_sector_size
        fits = disk.sector_size <= physical <= HINT_LIMIT and not physical & (physical - 1)
        self.block_size = physical if fits else disk.sector_size
        if disk.discard:
            sector, unit, start = self.sector_size, disk.discard_granularity, disk.discard_alignment
            fits = unit > 0 and not unit % sector and not start % sector
            self.discard_granularity = unit if fits else sector
            self.discard_alignment = start if fits else 0

    def __repr__(self) -> str:
        return f"FrontStore({self._place!r})"

    def measure(self) -> int:
        return self._ask(self._size())

    def readinto(self, buffer: Buffer, offset: int) -> None:
        self.readv([buffer], offset)

    def write(self, buffer: Buffer, offset: int) -> None:
        self.writev([buffer], offset)

    def readv(self, buffers: Sequence[Buffer], offset: int) -> None:
        check_buffers(self, buffers, offset)
        # As for a write, bytes of our own stand in for the guest's pages.
        content = bytearray(total(buffers))
        self._ask(self._device.preadv([content], offset))
        rest = memoryview(content)
        for buffer in buffers:
            buffer[:] = rest[: len(buffer)]
            rest = rest[len(buffer) :]

    def writev(self, buffers: Sequence[Buffer], offset: int) -> None:
        check_write(self, offset, total(buffers))
        # A copy: what an error keeps alive of the other loop must not keep a guest's page mapped.
        self._ask(self._device.pwrite(b"".join(buffers), offset))

    def discard(self, offset: int, length: int) -> None:
        check_write(self, offset, length)
        self._ask(self._device.discard(offset, length))

    def flush(self) -> None:
        self._durability.flush(self._flush)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._run(self._held.aclose())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _flush(self) -> None:
        disk = self._device.disk
        # A backend that offers neither has no cache of its own: so Linux's blkfront takes it.
        if disk.flush or disk.barrier:
            self._ask(self._device.flush())

    async def _size(self) -> int:
        return self._device.size

    def _ask(self, work: Coroutine[object, object, T]) -> T:
        if self._closed:
            work.close()
            raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
        try:
            return self._run(work)
        except PeerError as error:
            raise OSError(errno.EIO, str(error)) from error

    def _run(self, work: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
