# SPDX-License-Identifier: MIT
"""Pages that are shared with another domain, or could be: `Memory` and its views.

Layer 2.  A view is a plain `memoryview`, so that bytes move without copies.  To unmap pages
under a live view would turn the next access into SIGSEGV; so `close` refuses while there is
one.  How it knows: a memoryview, every slice or cast of it and whatever consumes it (numpy,
ctypes, struct, a file's readinto) keep alive the one `ffi.buffer` object they were made of,
and let go of it when they are released or die.  A weak reference to that object is the exact
answer, which counting `view` calls or asking the outermost memoryview is not.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Protocol

from xenpy._ffi.stable import ffi
from xenpy._ffi.types import CData
from xenpy.handles import Handle
from xenpy.types import PAGE_SIZE

__all__ = ["LocalMemory", "Memory", "PageMemory"]


class Memory(Protocol):
    """A range of memory, as `ring` and `gnttab.CopySegment` see it."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        """A view of `length` bytes (None: to the end); release it before `close`."""
        ...

    def pointer(self, offset: int = 0) -> CData:
        """For users of `_ffi`: the address, valid until `close`.

        Raises:
            StaleHandleError: closed, or inherited by fork.
        """
        ...


class PageMemory(Handle):
    """A `Memory` at an address.  Base of mappings, shared pages and local memory.

    Args:
        address: of the first byte.
        size: bytes.
        writable: False makes every view read-only.
    """

    def __init__(self, address: CData, size: int, *, writable: bool = True) -> None:
        self._address = ffi.cast("char *", address)
        self._size = size
        self._writable = writable
        self._buffer: weakref.ref[object] | None = None
        super().__init__()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "viewed" if self.viewed else "open"
        return f"<{type(self).__name__} {self._size // PAGE_SIZE} pages, {state}>"

    @property
    def size(self) -> int:
        return self._size

    @property
    def writable(self) -> bool:
        return self._writable

    @property
    def viewed(self) -> bool:
        """Whether a view, or anything made from one, is alive."""
        return self._buffer is not None and self._buffer() is not None

    def view(self, offset: int = 0, length: int | None = None) -> memoryview:
        self._check("view")
        end = self._size if length is None else offset + length
        if not 0 <= offset <= end <= self._size:
            raise ValueError(f"{offset}..{end} is not within {self._size} bytes")
        buffer: object = None if self._buffer is None else self._buffer()
        if buffer is None:
            buffer = ffi.buffer(self._address, self._size)
            self._buffer = weakref.ref(buffer)
        whole = memoryview(buffer)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        part = whole[offset:end]
        return part if self._writable else part.toreadonly()

    def pointer(self, offset: int = 0) -> CData:
        if self._state:
            self._check("pointer")
        if not 0 <= offset <= self._size:
            raise ValueError(f"{offset} is not within {self._size} bytes")
        return self._address + offset

    @property
    def address(self) -> int:
        """For native engines: the address as a number, valid until `close`."""
        return int(ffi.cast("uintptr_t", self.pointer()))

    def close(self) -> None:
        """Unmap.

        Raises:
            BufferError: a view or a slice of it lives; nothing has changed.
        """
        if not self.closed and self.viewed:
            raise BufferError(f"a view of {self!r} is alive: release it, then close")
        super().close()


class LocalMemory(PageMemory):
    """Private memory of this process, zeroed, page-aligned; or a shared file's.

    Args:
        size: bytes; need not be whole pages.

    A child of fork inherits it, by copy or (`from_fd`) shared.
    """

    survives_fork = True

    def __init__(self, size: int) -> None:
        self._attach(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), size)

    @classmethod
    def from_fd(cls, fd: int, size: int | None = None) -> LocalMemory:
        """Map a file that can be mapped shared, such as a memfd; `fd` stays the caller's."""
        self = cls.__new__(cls)
        size = os.fstat(fd).st_size if size is None else size
        self._attach(mmap.mmap(fd, size), size)
        return self

    @classmethod
    def shareable(cls, name: str, size: int) -> tuple[int, LocalMemory]:
        """A memfd of so many bytes, the caller's, which another process may map; and it mapped
        here.

        Raises:
            OSError: there is no memory, or no descriptor: a mapping keeps one of its own.
        """
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            return fd, cls.from_fd(fd)
        except BaseException:
            os.close(fd)
            raise

    def _attach(self, area: mmap.mmap, size: int) -> None:
        self._area = area
        self._export = ffi.from_buffer("char[]", area)
        super().__init__(self._export, size)

    def _release(self) -> None:
        # The pointer goes first: mmap refuses to close while it is exported.
        del self._export, self._address
        self._area.close()
