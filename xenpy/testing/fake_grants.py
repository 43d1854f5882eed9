# SPDX-License-Identifier: MIT
"""Grant tables of a fake Xen: entries, mappings, copies.

Follows xen/common/grant_table.c and drivers/xen/gnt{dev,alloc}.c where a driver can see it:
a map of several grants succeeds or fails as a whole, a copy has a status for each segment,
and a page that its owner gave up stays until the last mapping of it is gone.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xenpy.testing.fake_pages import MachinePages
from xenpy.types import PAGE_SIZE

__all__ = ["GrantTables", "Mapped"]

GNTST_GENERAL_ERROR = -1
GNTST_BAD_DOMAIN = -2
GNTST_BAD_GNTREF = -3
ENTRIES = 1 << 15
"""In each domain's table: 64 frames, Xen's default."""


@dataclass(eq=False)
class _Entry:
    """One grant: whose page, for whom, how often it is mapped, whether its owner let go."""

    domid: int
    ref: int
    page: int
    grantee: int
    writable: bool
    mapped: int = 0
    released: bool = False


@dataclass(eq=False)
class Mapped:
    """A range of pages that a process has mapped, shared or foreign.

    Attributes:
        address: where.
        entries: the grant behind each page.
        on_unmap: a notification that was asked for.
    """

    address: int
    entries: list[_Entry]
    on_unmap: Callable[[], None] | None = None


@dataclass
class GrantTables:
    """The grant tables of all domains.  Thread-safe.

    Attributes:
        domains: those that exist.
        eagain: copies of these (domid, ref) answer GNTST_eagain so many more times.
        limit: pages that a domain may share: gntalloc's parameter; None: any number.
    """

    pages: MachinePages
    domains: set[int]
    eagain: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    limit: int | None = None

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: dict[tuple[int, int], _Entry] = {}

    def granted(self, domid: int | None = None) -> int:
        """How many entries there are, of one domain or of all."""
        with self._lock:
            return sum(1 for owner, _ in self._entries if domid in (None, owner))

    def mapped(self) -> int:
        """How many foreign mappings of pages there are."""
        with self._lock:
            return sum(entry.mapped for entry in self._entries.values())

    def share(self, domid: int, grantee: int, count: int, *, writable: bool) -> Mapped:
        """gntalloc: allocate, grant and map.

        Raises:
            OSError: ENOSPC, more than the limit.
        """
        with self._lock:
            if self.limit is not None and self.granted(domid) + count > self.limit:
                raise OSError(errno.ENOSPC, "the limit of gntalloc")
            entries: list[_Entry] = []
            for page in self.pages.allocate(count):
                # The first eight are reserved (grant_table.h).
                ref = next(n for n in range(8, ENTRIES) if (domid, n) not in self._entries)
                entry = self._entries[domid, ref] = _Entry(domid, ref, page, grantee, writable)
                entries.append(entry)
            address = self.pages.map([entry.page for entry in entries], writable=True)
            return Mapped(address, entries)

    def reserve(self, domid: int, ref: int, reserved: int) -> None:
        """Grant a page under one of the first eight references instead, as the toolstack does
        with those of console and XenStore before a guest runs."""
        with self._lock:
            entry = self._entries.pop((domid, ref))
            entry.ref = reserved
            self._entries[domid, reserved] = entry

    def unshare(self, shared: Mapped) -> None:
        with self._lock:
            self._notify(shared)
            self.pages.unmap(shared.address, len(shared.entries))
            for entry in shared.entries:
                entry.released = True
                self._reap(entry)

    def map(self, domid: int, pages: Sequence[tuple[int, int]], *, writable: bool) -> Mapped:
        """gntdev: map grants of others to `domid`.

        Raises:
            OSError: EINVAL, one of them is not ours to map.
        """
        with self._lock:
            if any(self._status(page, domid, writable) for page in pages):
                raise OSError(errno.EINVAL, "a bad grant")
            entries = [self._entries[page] for page in pages]
            address = self.pages.map([entry.page for entry in entries], writable=writable)
            for entry in entries:
                entry.mapped += 1
            return Mapped(address, entries)

    def unmap(self, mapped: Mapped) -> None:
        with self._lock:
            self._notify(mapped)
            self.pages.unmap(mapped.address, len(mapped.entries))
            for entry in mapped.entries:
                entry.mapped -= 1
                self._reap(entry)

    def read(self, domid: int, page: tuple[int, int], offset: int, length: int) -> bytes | int:
        """Grant copy out of a page: the bytes, or the status."""
        with self._lock:
            status = self._status(page, domid, False) or self._paged_out(page)
            return status or self.pages.read(self._entries[page].page, offset, length)

    def write(self, domid: int, page: tuple[int, int], offset: int, content: bytes) -> int:
        """Grant copy into a page: the status."""
        with self._lock:
            status = self._status(page, domid, True) or self._paged_out(page)
            if status == 0:
                self.pages.write(self._entries[page].page, offset, content)
            return status

    def clear_byte(self, mapped: Mapped, offset: int) -> None:
        """UNMAP_NOTIFY_CLEAR_BYTE."""
        page, within = divmod(offset, PAGE_SIZE)
        self.pages.write(mapped.entries[page].page, within, b"\0")

    def _status(self, page: tuple[int, int], domid: int, writable: bool) -> int:
        owner, ref = page
        if owner not in self.domains:
            return GNTST_BAD_DOMAIN
        if ref >= ENTRIES:
            return GNTST_BAD_GNTREF
        entry = self._entries.get(page)
        # _set_status_v1 has one answer to an entry that is empty, another's or read-only.
        if entry is None or entry.released or entry.grantee != domid:
            return GNTST_GENERAL_ERROR
        return GNTST_GENERAL_ERROR if writable and not entry.writable else 0

    def _paged_out(self, page: tuple[int, int]) -> int:
        left = self.eagain.get(page, 0)
        if left:
            self.eagain[page] = left - 1
            return -12
        return 0

    def _notify(self, mapped: Mapped) -> None:
        if mapped.on_unmap is not None:
            mapped.on_unmap()

    def _reap(self, entry: _Entry) -> None:
        if entry.released and entry.mapped == 0:
            del self._entries[entry.domid, entry.ref]
            self.pages.free(entry.page)
