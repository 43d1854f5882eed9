# SPDX-License-Identifier: MIT
"""The block backend as the framework sees it: prepare, connect, disconnect, close."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from xenpy.backend import Device, DeviceContext, DeviceError, Keys
from xenpy.drivers.block.datapath import Counters
from xenpy.drivers.block.frontend_keys import MAX_RING_PAGE_ORDER, FrontendKeys
from xenpy.drivers.block.image import ImageKeys, open_image
from xenpy.drivers.block.protocol import SECTOR_SHIFT, SECTOR_SIZE, Disk
from xenpy.drivers.block.queue import BlockQueue
from xenpy.drivers.block.store import Store
from xenpy.runtime import QueueThread, in_thread

__all__ = ["BlockBackend"]

VDISK_CDROM: Final = 1
VDISK_READONLY: Final = 4
"""blkif.h, the values of `info`."""

FEATURES: Final[Keys] = {
    "feature-flush-cache": 1,
    "feature-persistent": 1,
    "max-ring-page-order": MAX_RING_PAGE_ORDER,
}


class BlockBackend(Device):
    """One disk.  Its store lives from `prepare` to `close`, over any number of connections."""

    def __init__(self, context: DeviceContext) -> None:
        super().__init__(context)
        self._force = _flag(context.options, "force")
        self._counters = Counters()
        self._image: ImageKeys | None = None
        self._store: Store | None = None
        self._thread: QueueThread | None = None

    async def prepare(self) -> Keys:
        if self._store is None:
            image = self._image = ImageKeys.parse(self.context.backend_keys)
            # In a thread: a file on a dead server may take minutes to open.
            self._store = await in_thread(
                lambda: open_image(image, force=self._force), self.context.name, Store.close
            )
        return FEATURES

    async def connect(self, frontend: Mapping[str, str]) -> Keys:
        if self._store is None or self._image is None:
            raise DeviceError("connect before prepare")
        keys = FrontendKeys.parse(frontend)
        store = self._store
        disk = Disk(store.size >> SECTOR_SHIFT, self._image.readonly)
        queue = BlockQueue(self.context, keys, store, disk, self._counters)
        # Kept before it runs: a connect that is cancelled is still followed by a disconnect.
        self._thread = QueueThread(queue, self.context.name, self.context.on_failure)
        await self._thread.start()
        self.context.log.info(
            "%d page ring, %s, %s grants", len(keys.ring_refs), keys.abi.name,
            "persistent" if keys.persistent else "copied",
        )  # fmt: skip
        info = VDISK_READONLY if self._image.readonly else 0
        return {
            "sectors": disk.sectors,
            "sector-size": SECTOR_SIZE,
            "physical-sector-size": store.block_size,
            "info": info | (VDISK_CDROM if self._image.cdrom else 0),
        }

    async def disconnect(self) -> None:
        if self._thread is not None:
            await self._thread.stop()
            self._thread = None

    async def close(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            await in_thread(store.close, self.context.name)

    def stats(self) -> Mapping[str, int]:
        return asdict(self._counters)


def _flag(options: Mapping[str, str], name: str) -> bool:
    """Raises ValueError unless the option is absent, 0 or 1."""
    value = options.get(name, "0")
    if value not in ("0", "1"):
        raise ValueError(f"{name} is {value!r}; give 0 or 1")
    return value == "1"
