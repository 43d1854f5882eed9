# SPDX-License-Identifier: MIT
"""Programs in C whose Xen is a `FakeXen` in this process: see fake_process.c."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from compiling import compile_c
from xenpy.testing.fake_evtchn import EvtchnDevice
from xenpy.testing.fake_grants import Mapped
from xenpy.testing.fake_xen import FakeXen
from xenpy.types import DomId

__all__ = ["Door", "compile_program"]

NONE: Final = -1
LARGEST: Final = 1 << 16


def compile_program(source: Path, output: Path, *flags: str) -> Path:
    """A program with fake_process.c in the place of libxengnttab and libxenevtchn."""
    return compile_c(source, output, str(Path(__file__).with_name("fake_process.c")), *flags)


class Door:
    """Where programs that run as domain `domid` reach the fake; a context manager."""

    def __init__(self, xen: FakeXen, domid: DomId, directory: Path) -> None:
        self._xen = xen
        self._domid = domid
        path = directory / f"xen-{domid}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(str(path))
        self._socket.listen()
        self.pages_fd: int = xen.pages._fd
        self.environment: Mapping[str, str] = {
            "FAKE_XEN": str(path), "FAKE_XEN_PAGES": str(self.pages_fd),
        }  # fmt: skip
        self._threads = [threading.Thread(target=self._accept, name=str(path))]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=_Process(self._xen, self._domid, connection).serve)
            self._threads.append(thread)
            thread.start()


class _Process:
    """One program, and what it holds."""

    def __init__(self, xen: FakeXen, domid: DomId, connection: socket.socket) -> None:
        self._xen = xen
        self._domid = domid
        self._connection = connection
        self._shared: dict[int, Mapped] = {}
        self._mapped: dict[int, Mapped] = {}
        self._devices: dict[int, EvtchnDevice] = {}
        self._numbers = iter(range(1, 1 << 31))
        # In the order of fake_process.c.
        self._calls: list[Callable[..., list[int]]] = [
            self._share, self._unshare, self._map, self._unmap, self._open, self._close,
            self._bind_unbound, self._bind_interdomain, self._unbind, self._notify,
            self._pending, self._unmask,
        ]  # fmt: skip

    def serve(self) -> None:
        # A process that is killed breaks off anywhere.
        with self._connection, suppress(ConnectionError):
            while request := self._connection.recv(LARGEST):
                self._answer(*struct.unpack(f"<{len(request) // 8}q", request))
        # It is gone: first its memory, then its files.
        for mapped in self._mapped.values():
            self._xen.grants.unmap(mapped)
        for shared in self._shared.values():
            self._xen.grants.unshare(shared)
        for device in self._devices.values():
            device.close()

    def _answer(self, operation: int, *words: int) -> None:
        call, fds = self._calls[operation], []
        try:
            answer = [0, *call(*words)]
            if call == self._open:
                fds = [self._devices[answer[1]].fd]
        except OSError as error:
            answer = [error.errno or errno.EIO]
        socket.send_fds(self._connection, [struct.pack(f"<{len(answer)}q", *answer)], fds)

    def _keep(
        self, where: dict[int, Mapped], mapped: Mapped, offset: int, port: int
    ) -> tuple[int, list[int]]:
        def on_unmap() -> None:
            if offset != NONE:
                self._xen.grants.clear_byte(mapped, offset)
            if port != NONE:
                self._xen.channels.send(self._domid, port)

        mapped.on_unmap = on_unmap
        number = next(self._numbers)
        where[number] = mapped
        return number, [entry.page for entry in mapped.entries]

    def _share(self, domid: int, count: int, writable: int, offset: int, port: int) -> list[int]:
        shared = self._xen.grants.share(self._domid, domid, count, writable=bool(writable))
        number, pages = self._keep(self._shared, shared, offset, port)
        return [number, *pages, *(entry.ref for entry in shared.entries)]

    def _unshare(self, number: int) -> list[int]:
        self._xen.grants.unshare(self._shared.pop(number))
        return []

    def _map(self, domid: int, writable: int, offset: int, port: int, *refs: int) -> list[int]:
        pages = [(domid, ref) for ref in refs]
        mapped = self._xen.grants.map(self._domid, pages, writable=bool(writable))
        number, found = self._keep(self._mapped, mapped, offset, port)
        return [number, *found]

    def _unmap(self, number: int) -> list[int]:
        self._xen.grants.unmap(self._mapped.pop(number))
        return []

    def _open(self) -> list[int]:
        number = next(self._numbers)
        self._devices[number] = EvtchnDevice(self._xen.channels, self._domid)
        return [number]

    def _close(self, number: int, *_: int) -> list[int]:
        self._devices.pop(number).close()
        return []

    def _bind_unbound(self, number: int, domid: int, _: int) -> list[int]:
        return [self._devices[number].bind_unbound(domid)]

    def _bind_interdomain(self, number: int, domid: int, remote_port: int) -> list[int]:
        return [self._devices[number].bind_interdomain(domid, remote_port)]

    def _unbind(self, number: int, port: int, _: int) -> list[int]:
        self._devices[number].unbind(port)
        return []

    def _notify(self, number: int, port: int, _: int) -> list[int]:
        self._devices[number].notify(port)
        return []

    def _pending(self, number: int, *_: int) -> list[int]:
        return self._devices[number].read(1)

    def _unmask(self, number: int, port: int, _: int) -> list[int]:
        self._devices[number].unmask([port])
        return []
