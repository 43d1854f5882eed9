# SPDX-License-Identifier: MIT
"""The machine memory of a fake Xen: pages of one memfd, mapped as often as one likes.

The mappings are real ones, so that an access after an unmap is the same SIGSEGV as it is
with /dev/xen/gntdev, and two mappings of a page show each other's writes.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Final

from xenpy.types import PAGE_SIZE

__all__ = ["MachinePages"]

PROT_NONE: Final = 0
PROT_READ: Final = 1
PROT_WRITE: Final = 2
MAP_SHARED: Final = 1
MAP_PRIVATE: Final = 2
MAP_FIXED: Final = 0x10
MAP_ANONYMOUS: Final = 0x20
MAP_FAILED: Final = 2 ** (8 * ctypes.sizeof(ctypes.c_void_p)) - 1

# Python's mmap cannot place pages one by one, which grants in any order need.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class MachinePages:
    """Numbered pages, allocated and mapped."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("fake-xen", os.MFD_CLOEXEC)
        self._nr_pages = 0
        self._free: list[int] = []

    def allocate(self, count: int) -> list[int]:
        """`count` zeroed pages; their numbers."""
        pages = [self._free.pop() for _ in range(min(count, len(self._free)))]
        for page in pages:
            os.pwrite(self._fd, bytes(PAGE_SIZE), page * PAGE_SIZE)
        fresh = range(self._nr_pages, self._nr_pages + count - len(pages))
        self._nr_pages = fresh.stop
        os.ftruncate(self._fd, self._nr_pages * PAGE_SIZE)
        return [*pages, *fresh]

    def free(self, page: int) -> None:
        """Give a page back, once nobody has it mapped."""
        self._free.append(page)

    def map(self, pages: Sequence[int], *, writable: bool) -> int:
        """Map pages one after the other.  Returns the address."""
        length = len(pages) * PAGE_SIZE
        base = _mmap(0, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        prot = PROT_READ | (PROT_WRITE if writable else 0)
        for number, page in enumerate(pages):
            where = base + number * PAGE_SIZE
            _mmap(where, PAGE_SIZE, prot, MAP_SHARED | MAP_FIXED, self._fd, page * PAGE_SIZE)
        return base

    def unmap(self, address: int, count: int) -> None:
        """Undo `map`."""
        _libc.munmap(address, count * PAGE_SIZE)

    def read(self, page: int, offset: int, length: int) -> bytes:
        """Bytes of a page, as somebody with another mapping sees them."""
        return os.pread(self._fd, length, page * PAGE_SIZE + offset)

    def write(self, page: int, offset: int, content: bytes) -> None:
        """Change bytes of a page."""
        os.pwrite(self._fd, content, page * PAGE_SIZE + offset)

    def close(self) -> None:
        """Give the memory back; mappings stay until they are unmapped."""
        os.close(self._fd)


def _mmap(address: int, length: int, prot: int, flags: int, fd: int, offset: int) -> int:
    result = _libc.mmap(address, length, prot, flags, fd, offset)
    if result == MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
