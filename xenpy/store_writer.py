# SPDX-License-Identifier: MIT
"""How messages get to xenstored without the event loop ever waiting for it.

A socket takes any number of bytes at a time.  Linux's /dev/xen/xenbus
(drivers/xen/xenbus/xenbus_dev_frontend.c) takes one whole message per write, drops what
follows it, tells poll nothing about writing, and for a WATCH does not return before
xenstored has answered, O_NONBLOCK or not.  Its buffer holds 4096 bytes, header included.
And it sends from that very buffer, later, in a thread of the kernel: a message that is
written before the one before it was answered replaces its payload (seen with 6.1 and 6.12:
of 31 writes of different nodes in flight, 2 nodes came into being and 31 were acknowledged).
So there is one message at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Final

from xenpy.store_wire import HEADER_SIZE, PAYLOAD_MAX

__all__ = ["DeviceWriter", "SocketWriter"]

log = logging.getLogger(__name__)

_FINISH_TIMEOUT: Final = 1.0


class SocketWriter:
    """Writes at once what the socket takes, and the rest when it takes more."""

    max_message: Final = HEADER_SIZE + PAYLOAD_MAX
    size_hint: Final = f"path and value together hold at most {PAYLOAD_MAX} bytes"

    def __init__(
        self, fd: int, loop: asyncio.AbstractEventLoop, on_error: Callable[[OSError], None]
    ) -> None:
        self._fd = fd
        self._loop = loop
        self._on_error = on_error
        self._rest = bytearray()
        self._armed = False
        self._closed = False

    def write(self, message: bytes) -> None:
        """Send one message, after those before it."""
        waiting = bool(self._rest)
        self._rest += message
        if not waiting:
            self._flush()

    def answered(self) -> None:
        """An answer has arrived: nothing depends on it."""

    def close(self) -> None:
        """Send no more."""
        self._closed = True
        self._arm(False)
        self._rest.clear()

    async def finished(self) -> None:
        """Nothing to wait for."""

    def _flush(self) -> None:
        if self._closed:
            return
        try:
            del self._rest[: os.write(self._fd, self._rest)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            # Not from here: whoever writes has a request to account for first.
            self._closed = True
            self._arm(False)
            self._loop.call_soon(self._on_error, error)
            return
        self._arm(bool(self._rest))

    def _arm(self, wanted: bool) -> None:
        """Be called when the socket takes more, or no longer.  Nearly always it takes all."""
        if wanted and not self._armed:
            self._loop.add_writer(self._fd, self._flush)
        elif self._armed and not wanted:
            self._loop.remove_writer(self._fd)
        self._armed = wanted


class DeviceWriter:
    """Writes one message per answer, in a thread of its own because it may block."""

    max_message: Final = PAYLOAD_MAX
    size_hint: Final = f"/dev/xen/xenbus takes {PAYLOAD_MAX - HEADER_SIZE} bytes, path included"

    def __init__(
        self, fd: int, loop: asyncio.AbstractEventLoop, on_error: Callable[[OSError], None]
    ) -> None:
        # A descriptor of its own: the number of the other one is reused once it is closed.
        self._fd = os.dup(fd)
        self._loop = loop
        self._on_error = on_error
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._finished = asyncio.Event()
        self._idle = threading.Semaphore(1)
        self._closed = False
        # A daemon: xenstored may never answer, and the process must be able to end.
        self._thread = threading.Thread(target=self._run, name="xenbus-writer", daemon=True)
        self._thread.start()

    def write(self, message: bytes) -> None:
        """Send one message, after those before it."""
        self._messages.put(message)

    def answered(self) -> None:
        """The answer to the message that was sent last has arrived."""
        self._idle.release()

    def close(self) -> None:
        """Send no more."""
        self._closed = True
        self._messages.put(None)
        self._idle.release()

    async def finished(self) -> None:
        """Wait, but not for ever, until the thread has ended."""
        try:
            async with asyncio.timeout(_FINISH_TIMEOUT):
                await self._finished.wait()
        except TimeoutError:
            log.warning("xenstored does not answer: a write to it is left behind")
        else:
            self._thread.join()

    def _run(self) -> None:
        try:
            while (message := self._messages.get()) is not None:
                self._idle.acquire()
                if self._closed:
                    return
                os.write(self._fd, message)
        except OSError as error:
            self._tell(self._on_error, error)
        finally:
            os.close(self._fd)
            self._tell(self._finished.set)

    def _tell(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            log.debug("the event loop ended before the writer")
