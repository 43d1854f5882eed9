# SPDX-License-Identifier: MIT
"""A store that takes batches: bytes striped over several files.  See write-a-store.md."""

import os
from collections.abc import Iterator, Sequence

from xenpy.drivers.block.store import Buffer, Store
from xenpy.words import parse_size

STRIPE = 65536


class StripedStore(Store):
    parallel = True  # pread and pwrite may run in several threads at once

    def __init__(self, directory: str, files: str = "2", size: str = "16M") -> None:
        self.size = parse_size(size)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.fds = [os.open(f"{directory}/stripe{n}", flags, 0o600) for n in range(int(files))]
        for fd in self.fds:
            os.truncate(fd, self.size)  # sparse: what nobody wrote takes no room

    def pieces(self, buffers: Sequence[Buffer], offset: int) -> Iterator[tuple[int, Buffer, int]]:
        """What lies in one stripe: (file, buffer, offset)."""
        for buffer in buffers:
            while buffer:
                count = min(len(buffer), STRIPE - offset % STRIPE)
                yield self.fds[offset // STRIPE % len(self.fds)], buffer[:count], offset
                buffer, offset = buffer[count:], offset + count

    def readv(self, buffers: Sequence[Buffer], offset: int) -> None:
        for fd, piece, place in self.pieces(buffers, offset):
            if os.preadv(fd, [piece], place) != len(piece):
                raise OSError("a stripe was cut off")

    def writev(self, buffers: Sequence[Buffer], offset: int) -> None:
        for fd, piece, place in self.pieces(buffers, offset):
            if os.pwritev(fd, [piece], place) != len(piece):
                raise OSError("a stripe is full")

    def readinto(self, buffer: Buffer, offset: int) -> None:
        self.readv([buffer], offset)

    def write(self, buffer: Buffer, offset: int) -> None:
        self.writev([buffer], offset)

    def flush(self) -> None:
        for fd in self.fds:
            os.fdatasync(fd)

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())
