# SPDX-License-Identifier: MIT
"""A console on a Unix socket: any number of readers at once, each of which may type."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from xenpy.drivers.console.backlog import Backlog
from xenpy.drivers.console.outlet import Outlet, Typist

__all__ = ["SocketOutlet"]

READ_LIMIT: Final = 1024
WRITE_LIMIT: Final = 1 << 16
READERS: Final = 32
PAUSE: Final = 1.0
"""Seconds without new readers when there is no descriptor for one."""
MODE: Final = 0o600


class SocketOutlet(Outlet):
    """Listens; each reader gets what is printed from then on.

    Args:
        path: of the socket; one that nobody listens on any more is replaced.
        typist: who gets what is typed.

    Raises:
        OSError: EADDRINUSE, somebody listens there, or something else is there.
    """

    def __init__(self, path: str | os.PathLike[str], typist: Typist) -> None:
        self.path = Path(path)
        self._typist = typist
        self._readers: set[_Reader] = set()
        self._paused = False
        self._gone = 0
        _clear_way(self.path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            # From the first moment on; a chmod afterwards may meet something else by that name.
            before = os.umask(0o777 & ~MODE)
            try:
                self._socket.bind(str(self.path))
            finally:
                os.umask(before)
            self._socket.listen(READERS)
        except OSError as error:
            self._socket.close()
            # Of a name that is too long Python knows no errno.
            number, why = error.errno or errno.ENAMETOOLONG, error.strerror or str(error)
            raise OSError(number, why, str(self.path)) from error
        self._loop = asyncio.get_running_loop()
        self._later: asyncio.TimerHandle | None = None
        self._hear()

    @property
    def readers(self) -> int:
        """How many are connected."""
        return len(self._readers)

    @property
    def lost(self) -> int:
        return self._gone + sum(reader.backlog.lost for reader in self._readers)

    def put(self, content: bytes) -> None:
        for reader in list(self._readers):
            reader.backlog.add(content)
            if not reader.stuck:
                self._flush(reader)

    def _hear(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            return
        except OSError:
            # No descriptor is left: it waits, and so do we.
            self._loop.remove_reader(self._socket)
            self._later = self._loop.call_later(PAUSE, self._hear)
            return
        if len(self._readers) >= READERS:
            connection.close()
            return
        connection.setblocking(False)
        reader = _Reader(connection)
        self._readers.add(reader)
        if not self._paused:
            self._listen(reader)

    def _listen(self, reader: _Reader) -> None:
        self._loop.add_reader(reader.socket, self._typed, reader)

    def _typed(self, reader: _Reader) -> None:
        try:
            content = reader.socket.recv(READ_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if content:
            self._typist.typed(content)
        else:
            self._forget(reader)

    def _flush(self, reader: _Reader) -> None:
        waiting = reader.backlog
        try:
            while waiting:
                waiting.took(reader.socket.send(waiting.first(WRITE_LIMIT)))
        except BlockingIOError:
            if not reader.stuck:
                reader.stuck = True
                self._loop.add_writer(reader.socket, self._flush, reader)
        except OSError:
            self._forget(reader)
        else:
            if reader.stuck:
                reader.stuck = False
                self._loop.remove_writer(reader.socket)

    def _forget(self, reader: _Reader) -> None:
        self._readers.discard(reader)
        self._gone += reader.backlog.lost
        self._loop.remove_reader(reader.socket)
        self._loop.remove_writer(reader.socket)
        reader.socket.close()

    def pause(self) -> None:
        self._paused = True
        for reader in self._readers:
            self._loop.remove_reader(reader.socket)

    def resume(self) -> None:
        self._paused = False
        for reader in self._readers:
            self._listen(reader)

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        if self._later is not None:
            self._later.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self.path.unlink(missing_ok=True)
        for reader in list(self._readers):
            self._forget(reader)


class _Reader:
    """One that is connected.

    Attributes:
        stuck: it has not read what the kernel holds for it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.backlog = Backlog()
        self.stuck = False


def _clear_way(path: Path) -> None:
    """Remove a socket that whoever died has left."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EADDRINUSE, "there is something that is no socket", str(path))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            pass
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "somebody listens there", str(path))
