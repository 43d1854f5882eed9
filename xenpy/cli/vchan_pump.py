# SPDX-License-Identifier: MIT
"""Both directions of a vchan, to and from file descriptors."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xenpy.drivers.vchan import VchanReader, VchanWriter

__all__ = ["move"]

CHUNK: Final = 256 << 10


async def move(
    reader: VchanReader, writer: VchanWriter, source: int, sink: int, linger: float | None
) -> None:
    """Until the other side closes, or `source` ends and all of it was read.

    Args:
        source, sink: file descriptors of any kind, which stay blocking ones.
        linger: seconds to go on receiving once `source` has ended; None: for ever.

    Raises:
        XenConnectionError: ECONNRESET, the other side is gone and has not read everything.
        PeerError: it broke the protocol.
        OSError: `source` or `sink` failed.
    """
    receiver = _Receiver(reader, sink)
    sending = asyncio.create_task(_send(source, writer))
    receiving = asyncio.create_task(receiver.run())
    try:
        await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        if not receiving.done() and sending.exception() is None:
            await asyncio.wait({receiving}, timeout=linger)
            receiver.take_what_is_there()
        await receiving
        if sending.done():
            sending.result()
        else:
            sending.cancel()
            await writer.flush()
    finally:
        for task in (sending, receiving):
            task.cancel()
        await asyncio.wait({sending, receiving})


class _Receiver:
    """From the vchan to a descriptor, by a thread: it may block for as long as it likes."""

    def __init__(self, reader: VchanReader, sink: int) -> None:
        self._reader = reader
        self._sink = sink
        self._ending = False
        self._waiting: asyncio.Task[int] | None = None

    async def run(self) -> None:
        view = memoryview(bytearray(CHUNK))
        while not self._ending or self._reader.ready:
            count = await self._next(view)
            if not count:
                return
            await asyncio.to_thread(_write, self._sink, view[:count])

    async def _next(self, view: memoryview) -> int:
        """How many bytes came; 0 at the end, or when there is nothing more to be waited for."""
        if self._reader.ready:
            return await self._reader.readinto(view)
        self._waiting = asyncio.ensure_future(self._reader.readinto(view))
        try:
            return await self._waiting
        except asyncio.CancelledError:
            if not self._ending:
                raise
            return 0
        finally:
            self._waiting = None

    def take_what_is_there(self) -> None:
        """Nothing that comes later is wanted."""
        self._ending = True
        if self._waiting is not None and not self._reader.ready:
            self._waiting.cancel()


async def _send(source: int, writer: VchanWriter) -> None:
    while chunk := await _read(source):
        await writer.send(chunk)
    await writer.flush()


async def _read(source: int) -> bytes:
    """What a descriptor has, as soon as it has something; b"" at its end.

    No thread waits for it, which could not be ended while nothing comes.
    """
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(source, readable.set)
    except PermissionError:
        # epoll does not take files, which never let anybody wait.
        return os.read(source, CHUNK)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(source)
    return os.read(source, CHUNK)


def _write(sink: int, content: memoryview) -> None:
    while content:
        content = content[os.write(sink, content) :]
