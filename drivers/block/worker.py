# SPDX-License-Identifier: MIT
"""The native engine in a process of its own: what goes wrong in it costs one disk.

A file that is cut off while it is mapped, or a bug in C, ends the worker and not the daemon
with all its other disks.  `engine/worker/worker.c` is the program.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from xenpy.drivers.block.frontend_keys import MAX_RING_PAGE_ORDER
from xenpy.drivers.block.native import EngineParts, NativeEngine
from xenpy.errors import XenError
from xenpy.runtime import StopSignal

__all__ = ["WORKER", "WorkerQueue"]

WORKER: Final = Path(__file__).with_name("xenpy-block-worker")
MAX_RING_PAGES: Final = 1 << MAX_RING_PAGE_ORDER
STOP: Final = signal.SIGRTMIN
"""What says that `EngineState.stop` was called."""
RING: Final = struct.Struct(f"={1 + MAX_RING_PAGES}I4x")
"""The end of struct block_worker: remote_port, refs, padding."""


class WorkerQueue(NativeEngine):
    """One blkif ring served by a worker; see `runtime.Engine`.

    The worker maps the ring and binds the port itself, and dies with the thread that started it.
    """

    where = "in a worker"

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        self._process: subprocess.Popen[bytes] | None = None
        # A stop comes in another thread, and another process may have the number by then.
        self._lock = threading.Lock()
        self._pidfd = -1

    def open(self) -> None:
        """
        Raises:
            XenError: the worker does not start, or cannot map the ring or bind the port.
        """
        parts, keys = self._parts, self._parts.keys
        shared = [parts.state.fd, parts.memory.fd, parts.trace.fd]
        fds = [*shared]
        if parts.store.fd >= 0:
            fds.append(parts.store.fd)
        command = [str(WORKER), str(os.getpid()), *map(str, shared)]
        try:
            self._process = process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds, cwd="/",
                env={},
            )  # fmt: skip
        except OSError as error:
            raise XenError(error.errno or errno.EIO, "block worker", program=str(WORKER)) from error
        self._pidfd = os.pidfd_open(process.pid)
        assert process.stdin is not None
        padding = [0] * (MAX_RING_PAGES - len(keys.ring_refs))
        ring = RING.pack(keys.event_channel, *keys.ring_refs, *padding)
        try:
            with process.stdin:
                process.stdin.write(parts.config(mapped=True) + ring)
        except BrokenPipeError:
            pass  # it has died, and says why
        word, number, what = self._read()
        if word != "open":
            raise XenError(errno.EIO, "block worker", self._end(), device=parts.context.name)
        if number:
            raise XenError(number, what, "", domid=parts.context.domid)

    def serve(self, stop: StopSignal) -> None:
        parts = self._parts
        stop.tell(self._stop)
        word, number, _ = self._read()
        if word != "end":
            raise XenError(errno.EIO, "block worker", self._end(), device=parts.context.name)
        parts.check(number)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            # It has ended, or never served.  In either case nothing of the guest's is in flight.
            process.kill()
            with process:
                process.wait()
        with self._lock:
            if self._pidfd >= 0:
                os.close(self._pidfd)
            self._pidfd = -1

    def _stop(self) -> None:
        with self._lock:
            if self._pidfd >= 0:
                self._parts.state.stop()
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, STOP)

    def _read(self) -> tuple[str, int, str]:
        """A line of the worker's: word, errno, text.  Empty if it has died."""
        assert self._process is not None
        assert self._process.stdout is not None
        word, _, rest = self._process.stdout.readline().decode().strip().partition(" ")
        number, _, what = rest.partition(" ")
        return word, int(number or 0), what

    def _end(self) -> str:
        """How the worker ended."""
        assert self._process is not None
        # One that lives has said what makes no sense.
        self._process.kill()
        status = self._process.wait()
        if status < 0:
            return f"the worker was ended by {signal.Signals(-status).name}"
        return f"the worker ended with status {status}"
