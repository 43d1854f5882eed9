# SPDX-License-Identifier: MIT
"""`nbd:unix:/path`, `nbd://host:port/export`: whatever an NBD server can serve.

One connection: a flush on one of two need not cover what was written through the other
(doc/proto.md of NBD, NBD_FLAG_CAN_MULTI_CONN).  Requests of several queues take turns.

A server that hangs is waited for, as a disk is; the device is draining then.  A server
that has gone, or whose host has, is an error for ever: what it had acknowledged and not
flushed may be lost, so that no other connection could take its place unnoticed.
"""

from __future__ import annotations

import errno
import importlib
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol, cast

from xenpy.backend import DeviceError
from xenpy.drivers.block.store import (
    SECTOR,
    Buffer,
    Durability,
    Store,
    check_range,
    check_write,
    total,
)
from xenpy.drivers.block.stores.nbd_address import NbdAddress

__all__ = ["NbdStore", "open_nbd_store"]

log = logging.getLogger(__name__)

CONNECT_BOUND: Final = 8.0
"""Seconds that the server may take until it serves; libxl waits 10."""
FLUSH_BOUND: Final = 8.0
"""Seconds that a close waits until the server has made what was written safe."""
GOODBYE_BOUND: Final = 2.0
PIECE: Final = 4 << 20
"""Bytes moved by one command."""
SERVER_LIMIT: Final = 32 << 20
"""What a server takes that says nothing about it (NBD's proto.md, "Block size constraints")."""
BLOCK_LIMIT: Final = 1 << 16
"""Of what the guest is told about blocks: a server may prefer megabytes."""
EXTENT: Final = 1 << 30
"""Bytes that one trim or zero command names, which carry no data."""
MISSING: Final = (
    "libnbd's Python binding is not installed: apt-get install python3-libnbd (a virtual "
    "environment sees it with --system-site-packages)"
)


class _Handle(Protocol):
    """Of libnbd's `NBD`, what is used here: nothing that blocks."""

    def set_export_name(self, export_name: str) -> None: ...
    def aio_connect_socket(self, sock: int) -> None: ...
    def aio_get_fd(self) -> int: ...
    def aio_get_direction(self) -> int: ...
    def aio_notify_read(self) -> None: ...
    def aio_notify_write(self) -> None: ...
    def aio_is_ready(self) -> bool: ...
    def aio_is_dead(self) -> bool: ...
    def aio_is_closed(self) -> bool: ...
    def aio_command_completed(self, cookie: int) -> bool: ...
    def aio_pread(self, buf: object, offset: int) -> int: ...
    def aio_pwrite(self, buf: object, offset: int) -> int: ...
    def aio_flush(self) -> int: ...
    def aio_trim(self, count: int, offset: int) -> int: ...
    def aio_zero(self, count: int, offset: int) -> int: ...
    def aio_disconnect(self) -> None: ...
    def get_size(self) -> int: ...
    def get_block_size(self, size_type: int) -> int: ...
    def is_read_only(self) -> bool: ...
    def can_flush(self) -> bool: ...
    def can_trim(self) -> bool: ...
    def can_zero(self) -> bool: ...


class _Buffers(Protocol):
    """libnbd's `Buffer`, the class."""

    def from_buffer(self, buf: object) -> object: ...


class _Library(Protocol):
    """libnbd's module."""

    SIZE_MINIMUM: int
    SIZE_PREFERRED: int
    SIZE_MAXIMUM: int
    AIO_DIRECTION_READ: int
    AIO_DIRECTION_WRITE: int
    Error: type[Exception]
    Buffer: _Buffers

    def NBD(self) -> _Handle: ...


def open_nbd_store(address: NbdAddress, *, readonly: bool) -> Store:
    """Connect to a server.

    Raises:
        DeviceError: there is no libnbd, or the server cannot serve a disk.
        OSError: there is no server.
    """
    try:
        library = cast(_Library, importlib.import_module("nbd"))
    except ImportError as error:
        raise DeviceError(MISSING) from error
    store = NbdStore(library, address.connect(CONNECT_BOUND), address.export, readonly=readonly)
    problem = store.problem(readonly=readonly)
    if problem:
        store.close()
        raise DeviceError(f"{address}: {problem}")
    return store


class NbdStore(Store):
    """An export of an NBD server.

    Args:
        library: libnbd's module.
        connection: to the server, fresh.  Taken over, whatever happens.
        export: its name at the server; most have one called "".
        readonly: whether `write` is refused.

    Raises:
        OSError: the server went away, is none, or did not answer in `CONNECT_BOUND`.
    """

    parallel = True

    def __init__(
        self, library: _Library, connection: socket.socket, export: str, *, readonly: bool
    ) -> None:
        self._nbd = library
        self._turn = threading.Lock()
        self._durability = Durability()
        self._unflushed = False
        with connection:
            connection.setblocking(False)
            handle = library.NBD()
            try:
                handle.set_export_name(export)
                handle.aio_connect_socket(connection.detach())
            except library.Error as error:
                raise self._os_error(handle, error) from error
        self._handle: _Handle | None = handle
        self._until(handle, handle.aio_is_ready, CONNECT_BOUND)
        self.size = handle.get_size()
        self.readonly = readonly or handle.is_read_only()
        preferred = handle.get_block_size(library.SIZE_PREFERRED)
        self.block_size = min(max(preferred, SECTOR), BLOCK_LIMIT)
        if handle.can_trim() and not self.readonly:
            self.discard_granularity = self.block_size
        self.can_zero = handle.can_zero() and not self.readonly
        self._can_flush = handle.can_flush()
        self._minimum = handle.get_block_size(library.SIZE_MINIMUM)
        limit = handle.get_block_size(library.SIZE_MAXIMUM) or SERVER_LIMIT
        self._piece = min(limit, PIECE)

    def __repr__(self) -> str:
        return f"NbdStore(size={self.size}, readonly={self.readonly})"

    def problem(self, *, readonly: bool) -> str:
        """Why what the server offers is no disk, or ""."""
        if self._minimum > SECTOR:
            hint = "put nbdkit's blocksize filter between"
            return f"the server moves nothing smaller than {self._minimum} bytes; {hint}"
        if self.size < SECTOR:
            return "the export is empty: a disk has at least one sector"
        if self.readonly and not readonly:
            return "the server exports it read-only: attach it with mode=r"
        if not readonly and not self._can_flush:
            return "the server cannot flush: nothing would ever be safe"
        return ""

    def readinto(self, buffer: Buffer, offset: int) -> None:
        self.readv([buffer], offset)

    def write(self, buffer: Buffer, offset: int) -> None:
        self.writev([buffer], offset)

    def readv(self, buffers: Sequence[Buffer], offset: int) -> None:
        count = total(buffers)
        check_range(self, offset, count)
        # One command instead of one for each buffer, at the price of a copy.
        content = bytearray(count)
        with memoryview(content) as view:
            self._run(
                lambda nbd, at, end: nbd.aio_pread(self._share(view[at:end]), offset + at), count
            )
            place = 0
            for buffer in buffers:
                buffer[:] = view[place : place + len(buffer)]
                place += len(buffer)

    def writev(self, buffers: Sequence[Buffer], offset: int) -> None:
        count = total(buffers)
        check_write(self, offset, count)
        with memoryview(b"".join(buffers)) as view:
            self._change(
                lambda nbd, at, end: nbd.aio_pwrite(self._share(view[at:end]), offset + at), count
            )

    def flush(self) -> None:
        if not self.readonly:
            self._flush(None)

    def _flush(self, bound: float | None) -> None:
        # From here on it is what is written beside this flush, which need not cover it.
        self._unflushed = False
        try:
            self._durability.flush(
                lambda: self._run(lambda nbd, _at, _end: nbd.aio_flush(), 1, bound=bound)
            )
        except OSError:
            self._unflushed = True
            raise

    def discard(self, offset: int, length: int) -> None:
        check_write(self, offset, length)
        if not self.discard_granularity:
            super().discard(offset, length)
        self._change(lambda nbd, at, end: nbd.aio_trim(end - at, offset + at), length, EXTENT)

    def zero(self, offset: int, length: int) -> None:
        check_write(self, offset, length)
        if not self.can_zero:
            super().zero(offset, length)
        else:
            self._change(lambda nbd, at, end: nbd.aio_zero(end - at, offset + at), length, EXTENT)

    def close(self) -> None:
        if self._unflushed and self._handle is not None:
            # A flush by the next connection, such as the next daemon's, need not cover it.
            try:
                self._flush(FLUSH_BOUND)
            except OSError as error:
                log.warning("what was written may be lost: %s", error)
        with self._turn:
            handle, self._handle = self._handle, None
        if handle is not None and not handle.aio_is_dead():
            with suppress(OSError, self._nbd.Error):
                handle.aio_disconnect()
                self._until(handle, handle.aio_is_closed, GOODBYE_BOUND)
        # The last reference: libnbd closes the socket.
        del handle

    def _share(self, view: Buffer) -> object:
        return self._nbd.Buffer.from_buffer(view)

    def _change(
        self, issue: Callable[[_Handle, int, int], int], count: int, piece: int | None = None
    ) -> None:
        """`_run`, and what it did is to be flushed; if it failed, a part of it."""
        try:
            self._run(issue, count, piece)
        finally:
            self._unflushed = True

    def _run(
        self,
        issue: Callable[[_Handle, int, int], int],
        count: int,
        piece: int | None = None,
        *,
        bound: float | None = None,
    ) -> None:
        """Issue commands for all of 0..`count`, and wait until every one has ended.

        Even if one fails: the server may still fill the buffers of the others.

        Args:
            bound: give up after so many seconds; only for commands without buffers.
        """
        deadline = None if bound is None else time.monotonic() + bound
        with self._turn:
            handle = self._handle
            if handle is None:
                raise OSError(errno.EBADF, "the store is closed")
            piece = self._piece if piece is None else piece
            failure: OSError | None = None
            waiting: list[int] = []
            for at in range(0, count, piece):
                try:
                    waiting.append(issue(handle, at, min(at + piece, count)))
                except self._nbd.Error as error:
                    failure = self._os_error(handle, error)
                    break
            while waiting:
                try:
                    if handle.aio_command_completed(waiting[0]):
                        waiting.pop(0)
                        continue
                except self._nbd.Error as error:
                    failure = failure or self._os_error(handle, error)
                    waiting.pop(0)
                    continue
                # If the connection breaks, the commands in flight tell.
                with suppress(self._nbd.Error):
                    self._move(handle, deadline)
        if failure is not None:
            raise failure

    def _until(self, handle: _Handle, done: Callable[[], bool], bound: float) -> None:
        """Move bytes until `done`.

        Raises:
            OSError: the connection ended first, or `bound` seconds did.
        """
        deadline = time.monotonic() + bound
        try:
            while not done():
                if handle.aio_is_dead() or handle.aio_is_closed():
                    raise OSError(errno.ECONNRESET, "the NBD server has hung up")
                self._move(handle, deadline)
        except self._nbd.Error as error:
            raise self._os_error(handle, error) from error

    def _move(self, handle: _Handle, deadline: float | None) -> None:
        """Wait until the connection can be read or written, and do that.

        libnbd's own poll would keep the interpreter to itself, and with it the daemon.
        """
        wanted = handle.aio_get_direction()
        events = select.POLLIN if wanted & self._nbd.AIO_DIRECTION_READ else 0
        if wanted & self._nbd.AIO_DIRECTION_WRITE:
            events |= select.POLLOUT
        poller = select.poll()
        poller.register(handle.aio_get_fd(), events)
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0) * 1000
        ready = poller.poll(left)
        if not ready:
            raise OSError(errno.ETIMEDOUT, "the NBD server does not answer")
        if ready[0][1] & ~select.POLLOUT and events & select.POLLIN:
            handle.aio_notify_read()
        else:
            handle.aio_notify_write()

    def _os_error(self, handle: _Handle, error: Exception) -> OSError:
        """libnbd's error as an OSError: the server's own errno, or EIO if it has gone."""
        text = str(error.args[0])
        if handle.aio_is_dead() or handle.aio_is_closed():
            return OSError(errno.EIO, f"the NBD server has gone ({text})")
        return OSError(int(error.args[1]) or errno.EIO, text)
