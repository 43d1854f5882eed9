# SPDX-License-Identifier: MIT
"""What a daemon does for whoever looks at it: a socket beside its lock, for root alone.

A client sends one line of JSON and gets one back, with descriptors; what it was given is its own
until it hangs up.  Small on purpose: what changes a device goes through XenStore, as everybody's.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from xenpy.backend import Recorded
from xenpy.errors import XenError
from xenpy.service import Service

__all__ = ["Answer", "Control", "ask"]

log = logging.getLogger(__name__)

LINE_LIMIT: Final = 4096
CLIENTS_LIMIT: Final = 16
FDS_LIMIT: Final = 64
"""As many as a device may have rings (`ring_protocol.MAX_RINGS`)."""
PATIENCE: Final = 5.0
"""Seconds for a client to say what it wants, and for a daemon to answer."""


class _RefusedError(Exception):
    """The text is for the client."""


def _name(kind: str) -> str:
    return f"backend-{kind}.sock"


@contextmanager
def _within(directory: str | os.PathLike[str]) -> Generator[str]:
    """A short name for a directory, whose own may be longer than a socket's address can be."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


class Control:
    """The daemon's side.

    Args:
        service: whose devices are shown.
        driver: what `xenpy serve` calls the driver.
        rundir: where the kind's lock is, which the caller holds.
    """

    def __init__(self, service: Service, driver: str, rundir: str | os.PathLike[str]) -> None:
        self._service = service
        self._driver = driver
        self._rundir = Path(rundir)

    async def run(self) -> None:
        """Serve until cancelled; without a socket, if there can be none: devices need it not."""
        try:
            await self._listen()
        except OSError as error:
            log.warning("nobody can tap what is served here: %s", error)

    async def _listen(self) -> None:
        with self._listening() as listener:
            loop = asyncio.get_running_loop()
            clients: set[asyncio.Task[None]] = set()
            try:
                while True:
                    connection, _ = await loop.sock_accept(listener)
                    if len(clients) >= CLIENTS_LIMIT:
                        with connection, suppress(OSError):
                            connection.setblocking(False)
                            connection.send(_line({"error": f"{CLIENTS_LIMIT} taps at once"}))
                        continue
                    client = asyncio.create_task(self._serve(connection))
                    clients.add(client)
                    client.add_done_callback(clients.discard)
            finally:
                for client in clients:
                    client.cancel()
                await asyncio.gather(*clients, return_exceptions=True)

    @contextmanager
    def _listening(self) -> Generator[socket.socket]:
        name = _name(self._service.kind)
        path = self._rundir / name
        # Of a daemon that was killed: the lock says that there is no other.
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with listener, _within(self._rundir) as here:
            listener.bind(f"{here}/{name}")
            # Before anybody can connect.
            path.chmod(0o600)
            listener.listen(CLIENTS_LIMIT)
            try:
                yield listener
            finally:
                path.unlink(missing_ok=True)

    async def _serve(self, connection: socket.socket) -> None:
        # A client that goes away in the middle of it has nobody to be told.
        with connection, suppress(OSError, TimeoutError):
            connection.setblocking(False)
            async with asyncio.timeout(PATIENCE):
                line = await asyncio.get_running_loop().sock_recv(connection, LINE_LIMIT)
            await self._answer(connection, line)

    async def _answer(self, connection: socket.socket, line: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            device = _device_of(line)
            recorded = self._find(device)
        except _RefusedError as error:
            await loop.sock_sendall(connection, _line({"error": str(error)}))
            return
        fds: list[int] = []
        with ExitStack() as held:
            held.callback(log.info, "%s: not tapped any more", device)
            for trace in recorded.traces[:FDS_LIMIT]:
                fds.append(trace.reader_fd())
                held.callback(os.close, fds[-1])
                trace.want(1)
                held.callback(trace.want, -1)
            # It fits: nothing else was ever sent there.
            answer = {"driver": self._driver, "layout": recorded.layout}
            socket.send_fds(connection, [_line(answer)], fds)
            log.info("%s: tapped", device)
            while await loop.sock_recv(connection, LINE_LIMIT):
                pass

    def _find(self, device: str) -> Recorded:
        lives = {life.name: life for life in self._service.devices.values()}
        life = lives.get(device)
        if life is None:
            known = ", ".join(sorted(lives)[:20]) or "none"
            raise _RefusedError(f"no device {device} is served here; there are: {known}")
        recorded = life.recorded()
        if recorded is None:
            raise _RefusedError(
                f"{device} has nothing to tap: it is {life.phase.name}, or its driver records "
                "nothing"
            )
        return recorded


def _device_of(line: bytes) -> str:
    try:
        asked: object = json.loads(line)
    except ValueError:
        asked = None
    match asked:
        case {"tap": str(device)}:
            return device
        case _:
            raise _RefusedError('one line is expected: {"tap": "KIND/DOMID/DEVID"}')


def _line(content: Mapping[str, object]) -> bytes:
    return json.dumps(content).encode() + b"\n"


class Answer:
    """What a daemon has given; a context manager, which hangs up.

    Attributes:
        driver: what `xenpy serve` calls the driver.
        layout: see `backend.Recorded`.
        rings: how many.
        fds: of their `trace.Trace`s, to be read by `trace.TraceReader`.
    """

    def __init__(
        self, connection: socket.socket, answer: Mapping[str, object], fds: Sequence[int]
    ) -> None:
        self._connection = connection
        self.driver = str(answer["driver"])
        self.layout = str(answer["layout"])
        self.rings = len(fds)
        self.fds = fds

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds:
            os.close(fd)
        self._connection.close()

    def fileno(self) -> int:
        """Readable once the daemon has ended."""
        return self._connection.fileno()


def ask(device: str, rundir: str | os.PathLike[str]) -> Answer:
    """Ask the daemon that serves `device`, KIND/DOMID/DEVID, for what its rings carry.

    Raises:
        XenError: ESRCH, no daemon serves the kind here; ENOENT, it serves no such device, or has
            nothing to show.
    """
    kind = device.partition("/")[0]
    with ExitStack() as held:
        connection = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        connection.settimeout(PATIENCE)
        try:
            with _within(rundir) as here:
                connection.connect(f"{here}/{_name(kind)}")
        except PermissionError as error:
            raise XenError(error.errno or errno.EACCES, "tap", "", device=device) from None
        except OSError:
            hint = f"no xenpy daemon serves {kind} here; `xenpy ls` shows who does"
            raise XenError(errno.ESRCH, "tap", hint, device=device) from None
        try:
            # One that has sent us away has said so before it closed.
            with suppress(BrokenPipeError):
                connection.sendall(_line({"tap": device}))
            line, fds, _, _ = socket.recv_fds(connection, LINE_LIMIT, FDS_LIMIT)
        except OSError as error:
            hint = "the daemon does not answer"
            raise XenError(error.errno or errno.ETIMEDOUT, "tap", hint, device=device) from error
        answer: dict[str, object] = json.loads(line or b'{"error": "the daemon hung up"}')
        if "error" in answer:
            raise XenError(errno.ENOENT, "tap", str(answer["error"]), device=device)
        given = Answer(connection, answer, fds)
        held.pop_all()
        return given
