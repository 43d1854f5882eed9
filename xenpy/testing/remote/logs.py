# SPDX-License-Identifier: MIT
"""What dom0 and its guests logged while a test ran."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from xenpy.testing.remote.order import Section
from xenpy.vm import console

__all__ = ["Logs", "tail"]

LINES = 100
"""At most so many of each log: its end says most."""
LIMIT = 64 << 10
KMSG = Path("/dev/kmsg")
XEN_LOGS = Path("/var/log/xen")


def tail(text: str, lines: int = LINES) -> str:
    """The end of a text, which says how much was left out before it."""
    found = text.splitlines()
    left_out = len(found) - lines
    return "\n".join([f"... {left_out} lines more", *found[-lines:]] if left_out > 0 else found)


class Logs:
    """Remembers where each log ended; close() gives the descriptor back."""

    def __init__(self, directory: Path = XEN_LOGS, kmsg: Path = KMSG) -> None:
        self._directory = directory
        self._sizes: dict[Path, int] = {}
        self._kmsg: int | None = None
        with suppress(OSError):
            self._kmsg = os.open(kmsg, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.mark()

    def close(self) -> None:
        if self._kmsg is not None:
            os.close(self._kmsg)
            self._kmsg = None

    def mark(self) -> None:
        """A test begins: what was logged so far is not its."""
        if self._kmsg is not None:
            with suppress(OSError):
                os.lseek(self._kmsg, 0, os.SEEK_END)
        self._sizes = {}
        for path in self._files():
            with suppress(OSError):
                self._sizes[path] = path.stat().st_size

    def since(self) -> list[Section]:
        """What was logged since then; [] if nothing was."""
        found = [("dom0's kernel", self._kernel())]
        found += [(str(path), self._grown(path)) for path in self._files()]
        return [(title, tail(text)) for title, text in found if text.strip()]

    def _files(self) -> list[Path]:
        """The toolstack's, and of each guest the console and what its device model said."""
        return sorted(path for path in self._directory.rglob("*.log") if path.is_file())

    def _grown(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                before = self._sizes.get(path, 0)
                # Shorter than it was: another file has its name now.
                file.seek(max(before if before <= size else 0, size - LIMIT))
                # A guest writes what it likes, and this goes to somebody's terminal.
                return console.clean(file.read(LIMIT).decode(errors="replace"))
        except OSError:
            return ""

    def _kernel(self) -> str:
        """A record is `priority,sequence,time,flags;text` and lines of data that are indented."""
        lines: list[str] = []
        while self._kmsg is not None and len(lines) < LIMIT:
            try:
                record = os.read(self._kmsg, 8192).decode(errors="replace")
            except BrokenPipeError:
                continue  # some were overwritten before they were read; go on with the oldest
            except OSError:
                break
            if not record:
                break
            lines.append(console.clean(record.partition(";")[2].partition("\n")[0]))
        return "\n".join(lines)
