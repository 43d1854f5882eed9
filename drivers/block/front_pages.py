# SPDX-License-Identifier: MIT
"""The pages that a frontend lends its backend: dedicated, zeroed, and counted.

Nothing else of this process is ever in them (XSA-403): what is written is copied in, what
was read is copied out.  They stay granted as long as the connection lasts, whether the
backend keeps them mapped or not, so that none is ever given back to this process while it
may be mapped (XSA-396); after that they go to gntalloc, which frees a page once the other
side has let go of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from xenpy.gnttab import GrantShare, SharedPages
from xenpy.types import PAGE_SIZE, DomId, GrantRef

__all__ = ["PagePool"]


class PagePool:
    """Pages of one queue.

    Args:
        share: where they come from.
        domid: the backend's domain.
        count: how many.
    """

    def __init__(self, share: GrantShare, domid: DomId, count: int) -> None:
        self._pages: SharedPages = share.share(domid, count)
        self._view = self._pages.view()
        # The last one back is the next one out: a backend that keeps few mapped sees few
        # (blkif.h, note on feature-persistent).
        self._free = list(range(count - 1, -1, -1))
        self.count = count

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Numbers of `count` pages; there must be as many free."""
        return [self._free.pop() for _ in range(count)]

    def give(self, pages: Sequence[int]) -> None:
        """Take pages back whose request was answered."""
        self._free += reversed(pages)

    def refs(self, pages: Sequence[int]) -> list[GrantRef]:
        return [self._pages.refs[page] for page in pages]

    def fill(self, pages: Sequence[int], content: memoryview) -> None:
        """Copy `content` into the pages, in their order."""
        for turn, page in enumerate(pages):
            part = content[turn * PAGE_SIZE : (turn + 1) * PAGE_SIZE]
            start = page * PAGE_SIZE
            self._view[start : start + len(part)] = part

    def drain(self, pages: Sequence[int], into: memoryview) -> None:
        """Copy the pages, once, to `into`."""
        for turn, page in enumerate(pages):
            part = into[turn * PAGE_SIZE : (turn + 1) * PAGE_SIZE]
            start = page * PAGE_SIZE
            part[:] = self._view[start : start + len(part)]

    def close(self) -> None:
        """Give every page to gntalloc, those of unanswered requests as well."""
        self._free.clear()
        self._view.release()
        self._pages.close()
