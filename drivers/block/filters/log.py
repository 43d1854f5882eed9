# SPDX-License-Identifier: MIT
"""`log,path=FILE`: a line in a file for each call, with its outcome and how long it took."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from xenpy.drivers.block.filters.base import Around, FilterPlace, Operation
from xenpy.drivers.block.store import Store
from xenpy.words import Words

__all__ = ["Log", "LogFilter"]

LIMIT: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Log:
    """The words.

    Attributes:
        path: the file, which is appended to; several disks may share it.
        limit: bytes that this disk writes there at most.
    """

    path: str
    limit: int
    lower_readonly: bool = False

    @classmethod
    def parse(cls, words: Words) -> Log:
        path, limit = words.text("path"), words.size("limit", LIMIT, 1)
        words.end()
        if not path.startswith("/"):
            raise ValueError(f"log: path is {path!r}; give path=/an/absolute/one")
        return cls(path, limit)

    def wrap(self, lower: Store, place: FilterPlace) -> Store:
        # Not through a link that somebody left in a directory that is everybody's.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        return LogFilter(lower, os.open(self.path, flags, 0o600), self.limit, place.device)


class LogFilter(Around):
    """Writes lines: `TIME DEVICE OPERATION OFFSET+LENGTH MICROSECONDS us OUTCOME`.

    A log that cannot be written, or is full, ends; the disk goes on.
    """

    def __init__(self, lower: Store, fd: int, limit: int, device: str) -> None:
        super().__init__(lower)
        self._fd = fd
        self._left = limit
        self._device = device
        self._turn = threading.Lock()

    def around(
        self, operation: Operation, offset: int, length: int, call: Callable[[], None]
    ) -> None:
        outcome = "ok"
        begun = time.monotonic()
        try:
            call()
        except OSError as error:
            outcome = errno.errorcode.get(error.errno or 0, str(error.errno))
            raise
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            took = int((time.monotonic() - begun) * 1e6)
            place = "" if operation is Operation.FLUSH else f" {offset}+{length}"
            self._line(f"{operation.value}{place} {took} us {outcome}")

    def close(self) -> None:
        super().close()
        with self._turn:
            self._left = 0
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                os.close(fd)

    def _line(self, text: str) -> None:
        line = f"{time.time():.6f} {self._device} {text}\n".encode()
        with self._turn:
            if self._left <= 0:
                return
            self._left -= len(line)
            if self._left <= 0:
                line = f"{time.time():.6f} {self._device} the log is full\n".encode()
            try:
                os.write(self._fd, line)
            except OSError:
                self._left = 0
