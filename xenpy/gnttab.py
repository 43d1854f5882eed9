# SPDX-License-Identifier: MIT
"""Grants: mapping and copying what others share (`GrantTable`), and sharing (`GrantShare`).

Thin over libxengnttab; synchronous.  A handle may be used by several threads, but what
counts and closes mappings is not locked: in xenpy one thread owns a handle and all of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeAlias

from xenpy._ffi.stable import StableLib, ffi
from xenpy._ffi.stable import lib as native
from xenpy._ffi.types import CData
from xenpy.errors import xen_error
from xenpy.handles import Handle, open_error
from xenpy.memory import Memory, PageMemory
from xenpy.types import PAGE_SIZE, DomId, GrantRef, Port

__all__ = [
    "GNTST_EAGAIN",
    "GNTST_OKAY",
    "CopySegment",
    "GrantShare",
    "GrantTable",
    "Mapping",
    "SharedPages",
]

GNTST_OKAY: Final = 0
GNTST_EAGAIN: Final = -12
"""grant_table.h: the page is paged out; try again."""

PROT_READ: Final = 1
PROT_WRITE: Final = 2
NO_EVENT: Final = 0xFFFFFFFF
"""evtchn_port_t -1: map_grant_ref_notify and share_page_notify send no event."""
NO_CLEAR: Final = 0xFFFFFFFF
"""uint32_t -1: they clear no byte."""
EAGAIN_DELAYS: Final = tuple(0.001 * 2**turn for turn in range(8))
"""Seconds between tries: a quarter of a second in all, as long as Linux's own gnttab_retry."""

Foreign: TypeAlias = tuple[DomId, GrantRef, int]
"""A place in another domain's page: domid, gref, offset."""
Local: TypeAlias = tuple[Memory, int]
"""A place in our own memory: memory, offset."""


class CopySegment(NamedTuple):
    """One grant-copy segment.

    Attributes:
        source, target: one of them foreign, the other local.
        length: bytes; at most 4096, and within the foreign page.
    """

    source: Foreign | Local
    target: Foreign | Local
    length: int


class _Held(PageMemory):
    """Pages that a handle of libxengnttab gave us; `give_back` returns them to it."""

    def __init__(
        self, address: CData, count: int, give_back: Callable[[_Held], None], *, writable: bool
    ) -> None:
        self._give_back = give_back
        super().__init__(address, count * PAGE_SIZE, writable=writable)

    def _release(self) -> None:
        self._give_back(self)


class _Owner(Handle):
    """What `GrantTable` and `GrantShare` have in common: a C handle and what it gave out."""

    def __init__(self, lib: StableLib, handle: CData) -> None:
        self._lib = lib
        self._handle = handle
        self._held: set[_Held] = set()
        super().__init__()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.held} pages held"
        return f"<{type(self).__name__} {state}>"

    @property
    def held(self) -> int:
        """How many pages are mapped or shared through this handle."""
        return sum(held.size for held in self._held) // PAGE_SIZE

    def native(self) -> tuple[StableLib, CData]:
        """For users of `_ffi`: the C functions and the handle, valid until `close`."""
        self._check("native")
        return self._lib, self._handle

    def close(self) -> None:
        """Give every page back and close.

        Raises:
            BufferError: a view of a page lives.  The other pages are given back, the handle
                stays open, and `close` may be called again.
        """
        if not self.closed:
            viewed = [held for held in self._held if held.viewed]
            for held in list(self._held):
                if not held.viewed:
                    held.close()
            if viewed:
                raise BufferError(f"views of {viewed!r} are alive: release them, then close")
        super().close()

    def _adopt(self, held: _Held) -> None:
        # A child of fork would hold the pages after we let go of them.
        self._lib.xenpy_dont_fork(held.pointer(), held.size)
        self._held.add(held)


class Mapping(_Held):
    """Foreign pages, mapped one after the other.

    Attributes:
        pages: whose page each is, and its reference.
    """

    def __init__(
        self,
        address: CData,
        pages: Sequence[tuple[DomId, GrantRef]],
        give_back: Callable[[_Held], None],
        *,
        writable: bool,
    ) -> None:
        self.pages = tuple(pages)
        super().__init__(address, len(pages), give_back, writable=writable)


class GrantTable(_Owner):
    """Maps and copies pages that other domains granted (/dev/xen/gntdev).

    Args:
        lib: the C functions; `xenpy.testing` substitutes its own.

    Raises:
        XenNotFoundError: no /dev/xen/gntdev: not a Xen domain, or xen-gntdev is not loaded.
    """

    def __init__(self, lib: StableLib = native) -> None:
        handle = lib.xengnttab_open(lib.xenpy_quiet_logger(), 0)
        if handle == ffi.NULL:
            raise open_error(ffi.errno, "gnttab_open", "xen-gntdev")
        super().__init__(lib, handle)

    def map(
        self,
        domid: DomId,
        refs: Sequence[GrantRef],
        *,
        writable: bool = True,
        notify_offset: int | None = None,
        notify_port: Port | None = None,
    ) -> Mapping:
        """Map grants of one domain, contiguously, all or none.

        Args:
            domid: who granted them.
            refs: at least one; the same one may appear twice.
            writable: False maps them read-only.
            notify_offset: a byte of the page that is set to 0 when the mapping goes away,
                by `close` or because this process died.  For one page only, and writable.
            notify_port: a bound port that is notified then.  For one page only.

        Raises:
            XenError: errno as the kernel gave it; EINVAL for a bad reference.
        """
        self._check("map")
        prot = PROT_READ | (PROT_WRITE if writable else 0)
        notify = _notification(len(refs), notify_offset, notify_port)
        if notify:
            address = self._lib.xengnttab_map_grant_ref_notify(
                self._handle, domid, refs[0], prot,
                notify.get("notify_offset", NO_CLEAR), notify.get("notify_port", NO_EVENT),
            )  # fmt: skip
        else:
            _check_some(refs)
            address = self._lib.xengnttab_map_domain_grant_refs(
                self._handle, len(refs), domid, ffi.new("uint32_t[]", list(refs)), prot
            )
        if address == ffi.NULL:
            raise xen_error(ffi.errno, "map_grant_refs", "", domid=domid, refs=list(refs), **notify)
        return self._mapped(address, [(domid, ref) for ref in refs], writable=writable)

    def map_foreign(
        self, pages: Sequence[tuple[DomId, GrantRef]], *, writable: bool = True
    ) -> Mapping:
        """Map grants of several domains, contiguously, all or none.

        Raises:
            XenError: errno as the kernel gave it.
        """
        self._check("map_foreign")
        _check_some(pages)
        address = self._lib.xengnttab_map_grant_refs(
            self._handle,
            len(pages),
            ffi.new("uint32_t[]", [domid for domid, _ in pages]),
            ffi.new("uint32_t[]", [ref for _, ref in pages]),
            PROT_READ | (PROT_WRITE if writable else 0),
        )
        if address == ffi.NULL:
            raise xen_error(ffi.errno, "map_grant_refs", pages=list(pages))
        return self._mapped(address, pages, writable=writable)

    def _mapped(
        self, address: CData, pages: Sequence[tuple[DomId, GrantRef]], *, writable: bool
    ) -> Mapping:
        mapping = Mapping(address, pages, self._unmap, writable=writable)
        self._adopt(mapping)
        return mapping

    def _unmap(self, held: _Held) -> None:
        count = held.size // PAGE_SIZE
        if self._lib.xengnttab_unmap(self._handle, held.pointer(), count) < 0:
            raise xen_error(ffi.errno, "gnttab_unmap", pages=count)
        self._held.discard(held)

    def copy(self, segments: Sequence[CopySegment]) -> list[int]:
        """Copy between granted pages and our memory, in one system call.

        Segments whose page is paged out (GNTST_eagain) are tried again for a quarter of a
        second.  The order among segments is not defined.

        Returns:
            The status of each: 0, or a negative GNTST_* of grant_table.h.

        Raises:
            ValueError: a segment has no foreign side or two, or is longer than a page.
            XenError: the call as a whole failed; nothing is known about the segments.
        """
        self._check("copy")
        if not segments:
            return []
        batch = ffi.new("xengnttab_grant_copy_segment_t[]", len(segments))
        for number, segment in enumerate(segments):
            self._fill(batch + number, segment)
        self._copy(batch, len(segments))
        self._retry_paged_out(batch, len(segments))
        return [int(batch[number].status) for number in range(len(segments))]

    def _fill(self, where: CData, segment: CopySegment) -> None:
        source, target, length = segment
        if not 0 < length <= PAGE_SIZE:
            raise ValueError(f"a segment of {length} bytes; a page is the most")
        if len(source) == 3 and len(target) == 2:
            domid, ref, offset = source
            fill, (memory, start) = self._lib.xenpy_copy_from_guest, target
        elif len(target) == 3 and len(source) == 2:
            domid, ref, offset = target
            fill, (memory, start) = self._lib.xenpy_copy_to_guest, source
        else:
            raise ValueError("a segment has one foreign and one local side")
        if not 0 <= offset <= PAGE_SIZE - length:
            raise ValueError(f"{length} bytes at {offset} leave the page of grant {ref}")
        if not 0 <= start <= memory.size - length:
            raise ValueError(f"{length} bytes at {start} leave our {memory.size} bytes")
        fill(where, domid, ref, offset, memory.pointer(start), length)

    def _copy(self, batch: CData, count: int) -> None:
        if self._lib.xengnttab_grant_copy(self._handle, count, batch) < 0:
            raise xen_error(ffi.errno, "grant_copy", segments=count)

    def _retry_paged_out(self, batch: CData, count: int) -> None:
        found = where = None
        for delay in EAGAIN_DELAYS:
            if found is None:
                if all(batch[number].status != GNTST_EAGAIN for number in range(count)):
                    return
                found = ffi.new("xengnttab_grant_copy_segment_t[]", count)
                where = ffi.new("uint32_t[]", count)
            again = self._lib.xenpy_copy_select(batch, count, GNTST_EAGAIN, found, where)
            if not again:
                return
            time.sleep(delay)
            self._copy(found, again)
            self._lib.xenpy_copy_merge(batch, found, where, again)

    def _release(self) -> None:
        self._lib.xengnttab_close(self._handle)

    def _abandon(self) -> None:
        self._lib.xengnttab_close(self._handle)  # all that xengnttab.h allows after fork


class SharedPages(_Held):
    """Our own pages, zeroed, that one other domain may map.

    Attributes:
        domid: who may.
        refs: the grant reference of each page.
    """

    def __init__(
        self,
        address: CData,
        domid: DomId,
        refs: Sequence[GrantRef],
        give_back: Callable[[_Held], None],
    ) -> None:
        self.domid = domid
        self.refs = tuple(refs)
        super().__init__(address, len(refs), give_back, writable=True)


class GrantShare(_Owner):
    """Shares pages of ours with other domains (/dev/xen/gntalloc).

    A page that is closed while the other side still has it mapped stays allocated, and
    granted, until the other side lets go (drivers/xen/gntalloc.c).

    Raises:
        XenNotFoundError: no /dev/xen/gntalloc; Debian's init script does not load it.
    """

    def __init__(self, lib: StableLib = native) -> None:
        handle = lib.xengntshr_open(lib.xenpy_quiet_logger(), 0)
        if handle == ffi.NULL:
            raise open_error(ffi.errno, "gntshr_open", "xen-gntalloc")
        super().__init__(lib, handle)

    def share(
        self,
        domid: DomId,
        count: int,
        *,
        writable: bool = True,
        notify_offset: int | None = None,
        notify_port: Port | None = None,
    ) -> SharedPages:
        """Allocate `count` zeroed pages, contiguous for us, and grant them to `domid`.

        Args:
            domid: who may map them.
            count: pages.
            writable: False lets it map them read-only; we may always write.
            notify_offset, notify_port: as for `GrantTable.map`: cleared and notified when
                we let go.  For one page only.

        Raises:
            XenError: ENOSPC at the `limit` of xen-gntalloc; otherwise as the kernel gave it.
        """
        self._check("share")
        if count < 1:
            raise ValueError(f"{count} pages")
        refs = ffi.new("uint32_t[]", count)
        notify = _notification(count, notify_offset, notify_port)
        if notify:
            address = self._lib.xengntshr_share_page_notify(
                self._handle, domid, refs, writable,
                notify.get("notify_offset", NO_CLEAR), notify.get("notify_port", NO_EVENT),
            )  # fmt: skip
        else:
            address = self._lib.xengntshr_share_pages(self._handle, domid, count, refs, writable)
        if address == ffi.NULL:
            raise xen_error(ffi.errno, "share_pages", "", domid=domid, count=count, **notify)
        granted = [GrantRef(refs[page]) for page in range(count)]
        pages = SharedPages(address, domid, granted, self._unshare)
        self._adopt(pages)
        return pages

    def _unshare(self, held: _Held) -> None:
        count = held.size // PAGE_SIZE
        if self._lib.xengntshr_unshare(self._handle, held.pointer(), count) < 0:
            raise xen_error(ffi.errno, "gntshr_unshare", pages=count)
        self._held.discard(held)

    def _release(self) -> None:
        self._lib.xengntshr_close(self._handle)

    def _abandon(self) -> None:
        self._lib.xengntshr_close(self._handle)


def _check_some(pages: Sequence[object]) -> None:
    if not pages:
        raise ValueError("no page to map")


def _notification(pages: int, offset: int | None, port: Port | None) -> dict[str, int]:
    """What was asked for, by name."""
    if offset is not None and not 0 <= offset < PAGE_SIZE:
        # libxengnttab passes it on, and the kernel clears that byte of whatever follows.
        raise ValueError(f"notify_offset {offset} is not within a page")
    asked = {"notify_offset": offset, "notify_port": port}
    notify = {name: value for name, value in asked.items() if value is not None}
    if notify and pages != 1:
        raise ValueError(f"a notification is for one page, not {pages}")
    return notify
