# SPDX-License-Identifier: MIT
"""Persistent grants: the guest's data pages that stay mapped, bounded, least recently used out.

A frontend that writes `feature-persistent` uses the same pages again and again (blkif.h),
so that to map each once and keep it is the cheapest way to its data: a map and unmap costs
ten times a copy.  Owned by the queue's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from xenpy.errors import XenError
from xenpy.gnttab import GrantTable, Mapping
from xenpy.runtime import Deferred
from xenpy.types import PAGE_SIZE, DomId, GrantRef

__all__ = ["MAX_PAGES", "GrantCache"]

MAX_PAGES: Final = 1056
"""As blkback's max_persistent_grants: 32 requests of 33 pages.  A guest that uses more gets
its least recently used pages unmapped, so that nobody exhausts the maptrack of others."""
EXTENT_PAGES: Final = 32
"""Pages mapped by one system call at most, and so unmapped together."""


@dataclass(slots=True, eq=False)
class _Extent:
    """Pages that were mapped together and must be unmapped together (gntdev)."""

    mapping: Mapping
    refs: list[GrantRef]
    used_in: int


class GrantCache:
    """Maps grants of one domain on first use and keeps them.

    Args:
        grants: the queue's grant-table handle.
        domid: whose grants.
        owner: the device's name, for the log.
        deferred: takes mappings that a view still holds.
        max_pages: how many pages may be mapped at once.

    Attributes:
        pages: the whole pages that are mapped, by reference; to be read only.  A slice of one
            is to be released before the next `prepare`.
    """

    def __init__(
        self,
        grants: GrantTable,
        domid: DomId,
        owner: str,
        deferred: Deferred,
        max_pages: int = MAX_PAGES,
    ) -> None:
        self._grants = grants
        self._domid = domid
        self._owner = owner
        self._deferred = deferred
        self._max_pages = max_pages
        self.pages: dict[GrantRef, memoryview] = {}
        self._extent_of: dict[GrantRef, _Extent] = {}
        self._extents: OrderedDict[_Extent, None] = OrderedDict()
        self._batch = 0
        self.maps = 0
        self.map_failures = 0
        self.unmaps = 0

    def __len__(self) -> int:
        return len(self.pages)

    def prepare(self, refs: Iterable[GrantRef]) -> None:
        """Start a batch: map what it needs and is not mapped, as far as that goes.

        A reference that cannot be mapped is no error here.  It is missing in `pages`,
        together with those that were to be mapped with it: gntdev maps all or none of a
        call (XSA-361, XSA-365 and XSA-367 are about the pieces of a failed batch).  Their
        requests are served by grant copy, which has a status for each.
        """
        self._batch += 1
        missing: dict[GrantRef, None] = {}
        for ref in refs:
            extent = self._extent_of.get(ref)
            if extent is None:
                missing[ref] = None
            elif extent.used_in != self._batch:
                extent.used_in = self._batch
                self._extents.move_to_end(extent)
        wanted = list(missing)
        for start in range(0, len(wanted), EXTENT_PAGES):
            together = wanted[start : start + EXTENT_PAGES]
            if not self._make_room(len(together)):
                return
            self._map(together)

    def close(self) -> None:
        """Unmap everything."""
        while self._extents:
            self._evict(next(iter(self._extents)))

    def _map(self, refs: list[GrantRef]) -> None:
        try:
            mapping = self._grants.map(self._domid, refs, writable=True)
        except XenError:
            self.map_failures += 1
            return
        self.maps += len(refs)
        extent = _Extent(mapping, refs, self._batch)
        self._extents[extent] = None
        for number, ref in enumerate(refs):
            self.pages[ref] = mapping.view(number * PAGE_SIZE, PAGE_SIZE)
            self._extent_of[ref] = extent

    def _make_room(self, pages: int) -> bool:
        """Evict until `pages` more fit.  False if the current batch uses all that is mapped."""
        while len(self.pages) + pages > self._max_pages:
            oldest = next(iter(self._extents), None)
            if oldest is None or oldest.used_in == self._batch:
                return False
            self._evict(oldest)
        return True

    def _evict(self, extent: _Extent) -> None:
        del self._extents[extent]
        for ref in extent.refs:
            self.pages.pop(ref).release()
            del self._extent_of[ref]
        self.unmaps += len(extent.refs)
        self._deferred.close(extent.mapping, self._owner)
