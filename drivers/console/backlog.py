# SPDX-License-Identifier: MIT
"""Output that waits for a reader: a bounded queue of bytes that forgets the oldest."""

from __future__ import annotations

from typing import Final

__all__ = ["BACKLOG_LIMIT", "Backlog"]

BACKLOG_LIMIT: Final = 1 << 16
"""Bytes that wait for one reader."""


class Backlog:
    """What has not been read.

    Attributes:
        lost: bytes that were forgotten.
    """

    def __init__(self, limit: int = BACKLOG_LIMIT) -> None:
        self._limit = limit
        self._content = bytearray()
        self.lost = 0

    def first(self, count: int) -> bytes:
        """The oldest bytes that wait, up to `count`."""
        return bytes(self._content[:count])

    def find(self, text: bytes) -> int:
        """Where `text` is among those that wait, or -1."""
        return self._content.find(text)

    def __len__(self) -> int:
        return len(self._content)

    def add(self, content: bytes) -> None:
        """Put bytes at the end, and forget what is too much at the front."""
        self._content += content
        over = len(self._content) - self._limit
        if over > 0:
            del self._content[:over]
            self.lost += over

    def took(self, count: int) -> None:
        """The oldest `count` bytes have been read."""
        del self._content[:count]
