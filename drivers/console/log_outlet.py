# SPDX-License-Identifier: MIT
"""A console's output in a file that cannot outgrow its bound.

FILE is what is printed now; at `size` bytes it becomes FILE.1, which was FILE.2 before, and
so on up to `keep`.  So a guest can have (keep + 1) * size bytes of disk, and no more.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from xenpy.drivers.console.outlet import Outlet

__all__ = ["KEEP", "SIZE", "LogOutlet"]

SIZE: Final = 1 << 20
KEEP: Final = 1
MODE: Final = 0o600


class LogOutlet(Outlet):
    """Args:
        path: the file; what is there already stays, and counts.
        size: bytes of one file.
        keep: how many older ones.
        log: where to say that the disk is full.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        log: logging.LoggerAdapter[logging.Logger],
        *,
        size: int = SIZE,
        keep: int = KEEP,
    ) -> None:
        if size < 1 or keep < 0:
            raise ValueError(f"a log of {size} bytes, {keep} kept")
        self._path = Path(path)
        self._size = size
        self._keep = keep
        self._log = log
        self._lost = 0
        self._fd = self._open(self._path)
        self._length = os.fstat(self._fd).st_size

    @property
    def lost(self) -> int:
        return self._lost

    def put(self, content: bytes) -> None:
        rest = memoryview(content)
        try:
            while rest:
                if self._length >= self._size:
                    self._rotate()
                count = os.write(self._fd, rest[: self._size - self._length])
                self._length += count
                rest = rest[count:]
        except OSError as error:
            # A full disk costs the log, not the guest.
            self._lost += len(rest)
            self._log.error("%s: %s", self._path, error.strerror)

    def _open(self, path: Path, more: int = 0) -> int:
        # Not through a link, and no pipe, whose reader we would wait for: the directory may be
        # somebody else's.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags | os.O_NONBLOCK | more, MODE)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "it is no file", str(path))
            os.fchmod(fd, MODE)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _rotate(self) -> None:
        # The new one first: if it cannot be had, nothing has been moved.
        spare = Path(f"{self._path}.new")
        spare.unlink(missing_ok=True)
        fresh = self._open(spare, os.O_EXCL)
        try:
            names = [self._path, *(Path(f"{self._path}.{n + 1}") for n in range(self._keep))]
            for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
                with suppress(FileNotFoundError):
                    newer.replace(older)
            spare.replace(self._path)
        except OSError:
            os.close(fresh)
            raise
        os.close(self._fd)
        self._fd = fresh
        self._length = 0

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
