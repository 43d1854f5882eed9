# SPDX-License-Identifier: MIT
"""The file in which xentop looks for the figures of a disk of kind vbd3.

For each of xen-backend's devices vbd3-DOMID-DEVID it reads `kthread-pid` in the disk's
backend directory, and then /dev/shm/td3-PID/vbd-DOMID-DEVID, a struct vbd3_stats (Xen's
tools/libs/stat/xenstat_linux.c, since 4.19: 66c8e9b76c).  `engine/engine.h` declares it as
struct block_xentop, and the engine counts in it: the file is the memory that a disk's
queues share.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from xenpy.types import DevId, DomId

__all__ = ["KEY", "KIND", "XentopFile"]

KIND: Final = "vbd3"
"""The only kind of backend for which xentop reads such files."""
KEY: Final = "kthread-pid"
"""Key in the backend directory: where the file is."""
ROOT: Final = Path("/dev/shm")
PREFIX: Final = "td3-"
MARK: Final = ".xenpy"
"""Says that a directory is ours: tapdisk's have the same names."""


class XentopFile:
    """The file of one disk; there until `close`.

    Args:
        domid, devid: the disk's.
        size: in bytes.
        root: where a daemon's directory is made.

    Attributes:
        fd: open for reading and writing; all of its bytes are there, and zero.

    Raises:
        OSError: it cannot be made, or somebody else's directory is in its place.
    """

    def __init__(self, domid: DomId, devid: DevId, size: int, *, root: Path = ROOT) -> None:
        self._directory = _directory(root)
        self.path = self._directory / f"vbd-{domid}-{devid}"
        self.path.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.fd = os.open(self.path, flags, 0o600)
        try:
            # Not a hole: to write into one could find the file system full, by SIGBUS.
            os.posix_fallocate(self.fd, 0, size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove it, and the directory with the last one.  Harmless when closed."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        number = os.fstat(fd).st_ino
        os.close(fd)
        with suppress(OSError):
            # A disk that was made anew meanwhile has another one there.
            if self.path.stat().st_ino == number:
                self.path.unlink()
            _remove(self._directory)


def _directory(root: Path) -> Path:
    """This process's directory."""
    directory = root / f"{PREFIX}{os.getpid()}"
    try:
        directory.mkdir(0o700)
    except FileExistsError:
        # Anybody may make directories in /dev/shm, and guess a process id.
        if not _is_ours(directory):
            raise OSError(errno.EEXIST, "somebody else's", str(directory)) from None
    else:
        _sweep(root)
    (directory / MARK).touch()
    return directory


def _is_ours(directory: Path) -> bool:
    status = directory.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _sweep(root: Path) -> None:
    """Remove what daemons that were killed have left."""
    for directory in root.glob(f"{PREFIX}[0-9]*"):
        pid = directory.name.removeprefix(PREFIX)
        if not pid.isdigit() or Path("/proc", pid).exists():
            continue
        with suppress(OSError):
            if _is_ours(directory) and (directory / MARK).exists():
                for file in directory.glob("vbd-*"):
                    file.unlink()
                _remove(directory)


def _remove(directory: Path) -> None:
    """A directory in which nothing but the mark is left; one with more stays."""
    if os.listdir(directory) == [MARK]:
        (directory / MARK).unlink()
        directory.rmdir()
