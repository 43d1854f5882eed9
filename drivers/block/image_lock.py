# SPDX-License-Identifier: MIT
"""Nobody else may write an image that is served, and we write none that others use.

Two writers, or one and a mounted file system, destroy an image without a word.  Looked for
are: another device of ours and QEMU (locks), a loop device over the file (sysfs), and for
a block device a mount, LVM, RAID or the kernel's blkback (O_EXCL, by which the kernel
gives a block device to one claimant).

The locks are QEMU's own protocol (block/file-posix.c, raw_check_lock_bytes), so that
each of us respects the other: byte 100 + n read-locked says "I use permission n", byte
200 + n says "I do not share permission n".  They are open-file-description locks: two
opens in one process conflict like those of two processes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from xenpy.backend import DeviceError

__all__ = ["open_image_file"]

PERM_BASE: Final = 100
SHARED_BASE: Final = 200
CONSISTENT_READ: Final = 0
WRITE: Final = 1
RESIZE: Final = 3
"""Bit numbers of QEMU's BLK_PERM_*."""
UNSHARED: Final = (WRITE, RESIZE)
"""As QEMU's disks without share-rw: others may read, and may rewrite the same bytes."""

FLOCK: Final = struct.Struct("@hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""

SYS: Final = Path("/sys")
PROC: Final = Path("/proc")
FORCE_HINT: Final = "to serve it nevertheless, start the daemon with force=1"


def open_image_file(path: str, *, readonly: bool, force: bool) -> int:
    """Open an image for ourselves alone.  Blocks.  Returns the descriptor.

    The locks last as long as the descriptor.

    Args:
        path: a regular file or a block device.
        readonly: open for reading; other readers are welcome then.
        force: do not care who else has it open, and lock nothing.

    Raises:
        DeviceError: somebody else uses the image, and who; or it is no image.
        OSError: it cannot be opened.
    """
    status = os.stat(path)
    is_device = stat.S_ISBLK(status.st_mode)
    if not is_device and not stat.S_ISREG(status.st_mode):
        # Not opened at all: to open a FIFO or a tape has effects of its own.
        raise DeviceError(f"{path} is neither a regular file nor a block device")
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC
    if force:
        return os.open(path, flags)
    if is_device and readonly:
        _refuse_claimed(path, status)
    try:
        fd = os.open(path, flags | (os.O_EXCL if is_device and not readonly else 0))
    except OSError as error:
        if error.errno == errno.EBUSY and is_device:
            raise _in_use(path, _claimants(status)) from error
        raise
    try:
        _refuse_looped(fd, path, readonly=readonly)
        _take_locks(fd, path, readonly=readonly)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _take_locks(fd: int, path: str, *, readonly: bool) -> None:
    """Say what we use and what we do not share; then see whether others agree.

    In this order, as QEMU does: of two that start at once, both may give way, but never
    neither.
    """
    used = (CONSISTENT_READ,) if readonly else (CONSISTENT_READ, WRITE)
    ours = [PERM_BASE + bit for bit in used] + [SHARED_BASE + bit for bit in UNSHARED]
    theirs = [SHARED_BASE + bit for bit in used] + [PERM_BASE + bit for bit in UNSHARED]
    try:
        for byte in ours:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        taken = any(_locked_elsewhere(fd, byte) for byte in theirs)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            taken = True
        elif error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            text = f"{path}: its file system has no locks, so nobody can tell who else writes it"
            raise DeviceError(f"{text}; {FORCE_HINT}") from error
        else:
            raise
    if taken:
        raise _in_use(path, list(_openers(os.fstat(fd), fd)))


def _locked_elsewhere(fd: int, byte: int) -> bool:
    """Whether another open file holds any lock on `byte`."""
    request = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind = FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request))[0]
    return bool(kind != fcntl.F_UNLCK)


def _refuse_looped(fd: int, path: str, *, readonly: bool) -> None:
    """The loop driver takes no lock; sysfs says what it has open."""
    image = os.fstat(fd)
    for loop in sorted(SYS.glob("block/loop*/loop/backing_file")):
        device = loop.parent.parent
        try:
            backing = os.stat(loop.read_text().rstrip("\n"))
            only_reads = (device / "ro").read_text().strip() == "1"
        except (OSError, ValueError):
            continue
        if _same(backing, image) and not (readonly and only_reads):
            raise _in_use(path, [f"/dev/{device.name}"])


def _refuse_claimed(path: str, status: os.stat_result) -> None:
    """A block device that we only read may be mounted, but not writably."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_EXCL))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        claimants = _claimants(status)
        if not claimants or not all(text.endswith("read-only") for text in claimants):
            raise _in_use(path, claimants) from error


def _claimants(status: os.stat_result) -> list[str]:
    """Who has claimed a block device or a partition of it, as far as the kernel says."""
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    node = SYS / "dev/block" / number
    numbers = {number}
    for partition in node.glob("*/partition"):
        numbers.add((partition.parent / "dev").read_text().strip())
    found: list[str] = []
    for line in (PROC / "self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[2] in numbers:
            # The options after the separator are the file system's, not the mount's: a
            # read-only bind of a writable file system still writes.
            writable = "rw" in fields[-1].split(",")
            found.append(f"a mount on {fields[4]}, {'writable' if writable else 'read-only'}")
    found += [holder.name for holder in sorted(node.glob("holders/*"))]
    return found or list(_openers(status, -1))


def _openers(image: os.stat_result, own_fd: int) -> Iterator[str]:
    """Processes that have the image open; for the message only."""
    for process in sorted(PROC.glob("[0-9]*"), key=lambda path: int(path.name)):
        ours = int(process.name) == os.getpid()
        try:
            for descriptor in (process / "fd").iterdir():
                mine = ours and int(descriptor.name) == own_fd
                if not mine and _same(os.stat(descriptor), image):
                    name = (process / "comm").read_text().strip()
                    yield "another disk of this daemon" if ours else f"{name} ({process.name})"
                    break
        except OSError:
            continue


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether two are the same file, or nodes of the same block device."""
    if stat.S_ISBLK(one.st_mode) and stat.S_ISBLK(other.st_mode):
        return one.st_rdev == other.st_rdev
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _in_use(path: str, holders: list[str]) -> DeviceError:
    by = ", ".join(holders[:4]) or "somebody who cannot be found"
    return DeviceError(f"{path} is in use by {by}; {FORCE_HINT}")
