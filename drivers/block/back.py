# SPDX-License-Identifier: MIT
"""The block backend as the framework sees it: prepare, connect, disconnect, close."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Final

from xenpy.backend import Device, DeviceContext, DeviceError, Keys, NativeXen, Recorded
from xenpy.drivers.block.datapath import Counters
from xenpy.drivers.block.disk_memory import DiskMemory
from xenpy.drivers.block.filters.base import FilterPlace
from xenpy.drivers.block.frontend_keys import (
    MAX_RING_PAGE_ORDER,
    QueueKeys,
    parse_queues,
)
from xenpy.drivers.block.image import ImageKeys, open_image
from xenpy.drivers.block.lane import Lane, Shared
from xenpy.drivers.block.protocol import (
    MAX_INDIRECT_SEGMENTS,
    SECTOR_SHIFT,
    SECTOR_SIZE,
    VDISK_CDROM,
    VDISK_READONLY,
    Disk,
)
from xenpy.drivers.block.sector_unit import unit_of
from xenpy.drivers.block.settings import Settings
from xenpy.drivers.block.store import Store
from xenpy.drivers.block.xentop import KEY, KIND, XentopFile
from xenpy.runtime import in_thread

__all__ = ["BlockBackend"]

VOLATILE: Final = "xenpy-volatile"
"""Key in the backend directory: the disk's bytes end with the daemon that wrote this, and
no other may take the disk over."""

FEATURES: Final[Keys] = {
    "feature-barrier": 1,
    "feature-flush-cache": 1,
    "feature-max-indirect-segments": MAX_INDIRECT_SEGMENTS,
    "max-ring-page-order": MAX_RING_PAGE_ORDER,
}


class BlockBackend(Device):
    """One disk.  Its store lives from `prepare` to `close`, over any number of connections."""

    def __init__(self, context: DeviceContext) -> None:
        super().__init__(context)
        self._settings = Settings.parse(context.options)
        self._counters = Counters()
        self._memory: DiskMemory | None = None
        self._image: ImageKeys | None = None
        self._store: Store | None = None
        self._lanes: list[Lane] = []
        self._failed = False
        self._unit = SECTOR_SIZE
        self._layout = ""

    async def prepare(self) -> Keys:
        if self._store is None:
            keys = self.context.backend_keys
            image = self._image = ImageKeys.parse(keys)
            if VOLATILE in keys:
                raise DeviceError(f"what {image.target} held ended with the daemon that served it")
            place = FilterPlace(
                self.context.name, image.readonly, self.context.log, self._settings.python,
                self.context.store_path,
            )  # fmt: skip
            # In a thread: a file on a dead server may take minutes to open.
            self._store = await in_thread(
                lambda: open_image(image, self._settings, place),
                self.context.name,
                Store.close,
            )
            self._memory = DiskMemory(self._xentop_file())
            if self._settings.tier in ("worker", "native") and self._store.native is None:
                raise DeviceError(
                    f"{image.target} with its filters is served in Python only: "
                    f"tier={self._settings.tier}"
                )
        return {
            **FEATURES,
            "feature-persistent": int(self._store.persistent),
            "multi-queue-max-queues": self._settings.queues,
            **self._discard_keys(self._store),
        }

    def _xentop_file(self) -> XentopFile | None:
        """Where the running Xen's xentop looks; a disk does not fail for want of figures."""
        context = self.context
        if context.kind != KIND or not isinstance(context.xen, NativeXen):
            return None
        try:
            return XentopFile(context.domid, context.devid, DiskMemory.size())
        except OSError as error:
            context.log.warning("xentop will show no figures: %s", error)
            return None

    def _offers_discard(self, store: Store) -> bool:
        wanted = self._image is not None and self._image.discard
        return wanted and not store.readonly and store.discard_granularity > 0

    def _discard_keys(self, store: Store) -> Keys:
        if not self._offers_discard(store):
            return {"feature-discard": 0}
        return {
            "feature-discard": 1,
            "discard-granularity": store.discard_granularity,
            "discard-alignment": store.discard_alignment,
            "discard-secure": int(store.discard_erases),
        }

    async def connect(self, frontend: Mapping[str, str]) -> Keys:
        if self._store is None or self._image is None or self._memory is None:
            raise DeviceError("connect before prepare")
        store = self._store
        keys = parse_queues(frontend, self._settings.queues)
        if not store.persistent:
            # Linux's frontend says so whether it was offered or not.
            keys = tuple(replace(one, persistent=False) for one in keys)
        wanted = self._image.sector_unit or self._settings.sector_unit
        discard = self._offers_discard(store)
        disk = Disk(
            sectors=_sectors(store),
            readonly=store.readonly,
            discard=discard,
            secure_discard=discard and store.discard_erases,
            sector_size=store.sector_size,
            unit=unit_of(wanted, frontend, store.sector_size),
        )
        shared = Shared(self.context, store, disk, self._memory, self._settings.tier)
        await self._start(keys, shared)
        self._unit, self._layout = disk.unit, keys[0].abi.name
        self.context.log.info(
            "%d queues, %d page rings, %s, %s grants, %s", len(keys), len(keys[0].ring_refs),
            keys[0].abi.name, "persistent" if keys[0].persistent else "copied",
            self._lanes[0].where,
        )  # fmt: skip
        info = VDISK_READONLY if store.readonly else 0
        volatile: Keys = {VOLATILE: 1} if store.volatile else {}
        xentop: Keys = {KEY: os.getpid()} if self._memory.is_shown else {}
        return {
            **volatile,
            **xentop,
            "sectors": self._published(disk.sectors),
            "sector-size": store.sector_size,
            "physical-sector-size": store.block_size,
            "info": info | (VDISK_CDROM if self._image.cdrom else 0),
        }

    async def _start(self, keys: Sequence[QueueKeys], shared: Shared) -> None:
        """A lane for each queue; all of them or none."""
        self._failed = False
        try:
            for number, one in enumerate(keys):
                name = f"{self.context.name}/{number}"
                # Kept before it runs: a connect that is cancelled is followed by a disconnect.
                self._lanes.append(Lane(shared, one, name, self._lane_failed))
                await self._lanes[-1].start()
        except Exception:
            await self.disconnect()
            raise

    def _lane_failed(self, error: Exception) -> None:
        """One is enough to close the device, once."""
        if not self._failed:
            self._failed = True
            self.context.on_failure(error)

    async def disconnect(self) -> None:
        await asyncio.gather(*(lane.stop() for lane in self._lanes))
        for lane in self._lanes:
            self._counters.add(lane.retire())
        self._lanes.clear()

    async def hand_over(self) -> str:
        store, memory = self._store, self._memory
        if store is None or memory is None:
            return ""
        if store.flush_failed or memory.has_lost:
            return "an earlier flush failed: writes are lost"
        if store.native is None and not store.readonly:
            # The next daemon has another connection to what is below, whose flush need not cover
            # what was written here, and which knows nothing of a server that died meanwhile.
            try:
                await in_thread(store.flush, self.context.name)
            except OSError as error:
                return f"what was written cannot be flushed: {error}"
        return ""

    async def refresh(self) -> Keys:
        store = self._store
        if store is None:
            raise DeviceError("no image is served")
        size = await in_thread(store.measure, self.context.name)
        if size < store.sector_size:
            raise DeviceError("the image is empty: a disk has at least one sector")
        store.size = size
        sectors = _sectors(store)
        self.context.log.info("%d sectors", sectors)
        for lane in self._lanes:
            lane.resize(sectors)
        return {"sectors": self._published(sectors)}

    def _published(self, sectors: int) -> int:
        """A number of 512-byte sectors, in what the frontend counts in."""
        return sectors // (self._unit >> SECTOR_SHIFT)

    async def close(self) -> None:
        store, self._store = self._store, None
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()
        if store is not None:
            await in_thread(store.close, self.context.name)

    def recorded(self) -> Recorded | None:
        if not self._lanes:
            return None
        return Recorded(self._layout, [lane.trace for lane in self._lanes])

    def stats(self) -> Mapping[str, int]:
        total = replace(self._counters)
        for lane in self._lanes:
            total.add(lane.counters())
        store = {} if self._store is None else self._store.stats()
        return {**asdict(total), **store}


def _sectors(store: Store) -> int:
    """The size in units of 512 bytes: whole sectors of the store's only."""
    return store.size // store.sector_size * (store.sector_size >> SECTOR_SHIFT)
