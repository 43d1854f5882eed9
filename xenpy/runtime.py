# SPDX-License-Identifier: MIT
"""The data plane's thread and its one door to asyncio.

A queue's thread alone owns the queue's mappings, its grant cache, its event-channel
handle and the I/O in flight.  The control plane can start it, ask it to stop, and be
told that it has ended; it never unmaps anything itself.  An engine in C keeps the same
contract (start, stop, report), so a driver can change tiers under it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from xenpy.types import Port

__all__ = [
    "Closeable",
    "Deferred",
    "Engine",
    "Queue",
    "QueueChannels",
    "QueueThread",
    "StopSignal",
    "hold_off",
    "in_thread",
]

T = TypeVar("T")

log = logging.getLogger(__name__)

SPURIOUS_ALLOWED: Final = 8
"""Wake-ups without work before the port stays masked for a while (XSA-332's remedy)."""
HOLD_OFF_FIRST: Final = 0.001
HOLD_OFF_LIMIT: Final = 0.05
"""Seconds that a port which fires for nothing stays masked: doubled from the first to the
limit, so that a storm costs 20 wake-ups a second and an honest peer at most 50 ms, once."""


class QueueChannels(Protocol):
    """What a queue's thread needs of `xenpy.evtchn.EventChannels`."""

    def fileno(self) -> int: ...
    def notify(self, port: Port) -> None: ...
    def pending(self, limit: int = 64) -> list[Port]: ...
    def unmask(self, ports: Sequence[Port]) -> None: ...


class StopSignal:
    """How a queue's thread is told to stop: a flag that is cheap to read, and an eventfd.

    Attributes:
        fd: readable from the moment of the stop on; it is the thread's to poll, not to read.
        requested: whether it was told.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.requested = False
        self._told: Callable[[], None] | None = None

    def request(self) -> None:
        """Tell it; again does no harm."""
        if not self.requested:
            self.requested = True
            if self._told is not None:
                self._told()
            os.eventfd_write(self.fd, 1)

    def tell(self, call: Callable[[], None]) -> None:
        """For an engine that looks elsewhere: have `call` made, in whatever thread, when it is
        to stop, and at once if it is already.  It may be called twice."""
        self._told = call
        if self.requested:
            call()

    def wait(self, seconds: float) -> bool:
        """Whether it is told within that time."""
        # Not select(2), which takes no descriptor beyond 1023.
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    def close(self) -> None:
        """Give the descriptor back; `request` must have been called, or never will be."""
        self.requested = True
        os.close(self.fd)


class Engine(ABC):
    """What serves one ring.  Every method runs in the queue's own thread."""

    @abstractmethod
    def open(self) -> None:
        """Map the ring and bind the port."""

    @abstractmethod
    def serve(self, stop: StopSignal) -> None:
        """Serve until told to stop; then once more what is in the ring, and return.

        Raises:
            PeerError: the frontend broke the protocol.
            OSError: the ring cannot be served any more.
        """

    @abstractmethod
    def close(self) -> None:
        """Wait for the I/O in flight, then unmap and unbind everything.  Called once, also
        after an `open` that failed half-way."""


class Queue(Engine):
    """An engine in Python: waits for events, and is called for each batch of requests.

    Attributes:
        channels: the handle whose descriptor wakes us; set by `open`.
        wakeups: how often it did.
    """

    wakeups = 0

    channels: QueueChannels

    @abstractmethod
    def service(self) -> int:
        """Serve one bounded batch of requests.

        Returns:
            How many were handled.  0 only after the ring's final check found nothing, so
            that the peer is sure to notify us of the next request.
        """

    def serve(self, stop: StopSignal) -> None:
        channels = self.channels
        poller = select.poll()
        poller.register(channels.fileno(), select.POLLIN)
        poller.register(stop.fd, select.POLLIN)
        idle_wakes = 0
        # Requests may have been published before the port was bound.
        self._drain(stop)
        while True:
            events = poller.poll()
            if any(fd == stop.fd for fd, _ in events):
                # One more batch of what the frontend put in the ring before we were told.
                self._drain(stop)
                return
            self.wakeups += 1
            ports = channels.pending()
            if self._drain(stop):
                idle_wakes = 0
            else:
                idle_wakes += 1
            if idle_wakes > SPURIOUS_ALLOWED and stop.wait(hold_off(idle_wakes)):
                return
            # Only now: whatever arrived since the final check is pending behind the mask.
            channels.unmask(ports)

    def _drain(self, stop: StopSignal) -> int:
        """Serve until the ring is empty; a peer that never lets it be is left on a stop."""
        handled = 0
        while batch := self.service():
            handled += batch
            if stop.requested:
                break
        return handled


def hold_off(idle_wakes: int) -> float:
    """For how many seconds a port that has fired that often for nothing stays masked; for more
    than `SPURIOUS_ALLOWED`."""
    doublings = min(idle_wakes - SPURIOUS_ALLOWED, 10)
    return min(HOLD_OFF_FIRST * (1 << doublings), HOLD_OFF_LIMIT)


class QueueThread:
    """Runs an `Engine` in a thread of its own until it is stopped or fails.

    Args:
        engine: what to run.
        name: of the thread, for logs and debuggers: the device's name.
        on_failure: called in the event loop with what `serve` raised.  The engine is
            closed by then: nothing of the peer is held any more.
    """

    def __init__(self, engine: Engine, name: str, on_failure: Callable[[Exception], None]) -> None:
        self._engine = engine
        self._on_failure = on_failure
        self._stop = StopSignal()
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        # A daemon thread: a store that hangs for ever must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    async def start(self) -> None:
        """Start the thread; returns once the engine is open.

        Raises:
            whatever `Engine.open` raised; the engine has been closed by then.
            RuntimeError: there is no thread to be had; the engine has not been opened.
        """
        try:
            self._thread.start()
        except RuntimeError:
            self._stop.close()
            self._ended.set_result(None)
            raise
        await asyncio.shield(self._opened)

    async def stop(self) -> None:
        """Ask the thread to stop and wait, without a bound, until it has closed the engine.

        The caller bounds the wait; to give up waiting does not call the stop back.
        """
        self._stop.request()
        await asyncio.shield(self._ended)

    def _run(self) -> None:
        failure: Exception | None = None
        opened = False
        try:
            self._engine.open()
            opened = True
            _tell(self._loop, self._thread.name, self._report_open)
            self._engine.serve(self._stop)
        except Exception as error:
            failure = error
        try:
            self._engine.close()
        except Exception:
            # The peer's pages may still be held: the leak must be seen, not swallowed.
            log.exception("%s: the engine did not close", self._thread.name)
        _tell(self._loop, self._thread.name, self._finish, failure, opened)

    def _finish(self, failure: Exception | None, opened: bool) -> None:
        """In the event loop: the thread has let go of everything and only has to return."""
        self._thread.join()
        self._stop.close()
        if not self._ended.done():
            self._ended.set_result(None)
        if failure is None:
            return
        if opened:
            self._on_failure(failure)
        elif not self._opened.done():
            self._opened.set_exception(failure)

    def _report_open(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)


async def in_thread(
    call: Callable[[], T], name: str, give_back: Callable[[T], object] | None = None
) -> T:
    """Run a call that may block for ever, such as an open of a file on a dead server.

    It has a daemon thread to itself: a few that hang would fill the pool of
    `asyncio.to_thread`, hold up every other device, and keep the process from ending.

    Args:
        call: what to run; its result or exception is returned or raised.
        name: of the thread.
        give_back: called in the event loop with a result that nobody waits for any more.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def succeed(result: T) -> None:
        if not outcome.cancelled():
            outcome.set_result(result)
        elif give_back is not None:
            give_back(result)

    def fail(error: BaseException) -> None:
        if not outcome.cancelled():
            outcome.set_exception(error)

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            _tell(loop, name, fail, error)
        else:
            _tell(loop, name, succeed, result)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        return await outcome
    except asyncio.CancelledError:
        # The result may have come in the same turn of the loop, and is nobody's all the same.
        came = outcome.done() and not outcome.cancelled() and outcome.exception() is None
        if came and give_back is not None:
            give_back(outcome.result())
        raise
    finally:
        if not outcome.cancelled():
            # It only has to return.
            thread.join()


def _tell(
    loop: asyncio.AbstractEventLoop, name: str, call: Callable[..., None], *args: object
) -> None:
    """Call in the event loop, from a thread."""
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:
        # The loop is closed: the process is ending, and nobody waits any more.
        log.debug("%s: ended after the event loop", name)


class Closeable(Protocol):
    """A handle whose `close` raises BufferError while a view of it lives."""

    def close(self) -> None: ...


class Deferred:
    """Mappings that could not be unmapped yet because somebody still looks at them.

    To unmap under a live view would turn the next access into SIGSEGV, so the unmap waits;
    it is counted (`len`), logged once, and tried again by whoever calls `retry`.
    Thread-safe: queue threads put, the control plane retries, and one at a time closes: of
    two that unmap the same pages, the second would unmap whatever is mapped there by then.

    Attributes:
        on_left: called, in any thread, when something is left to be tried again.
    """

    def __init__(self) -> None:
        self.on_left: Callable[[], None] = lambda: None
        self._waiting: list[tuple[str, Closeable]] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def close(self, thing: Closeable, owner: str) -> bool:
        """Close `thing` now, or keep it for later.  Returns True if it is closed."""
        with self._lock:
            try:
                thing.close()
            except BufferError:
                log.warning("%s: a view of %r is still alive; its unmap is deferred", owner, thing)
                self._waiting.append((owner, thing))
                self.on_left()
                return False
        return True

    def retry(self) -> int:
        """Try again.  Returns how many are still waiting."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            for owner, thing in waiting:
                try:
                    thing.close()
                except BufferError:
                    self._waiting.append((owner, thing))
                except OSError:
                    # The kernel refuses, and will again: the leak must be seen.
                    log.exception("%s: %r cannot be unmapped", owner, thing)
                else:
                    log.info("%s: the deferred unmap of %r is done", owner, thing)
            return len(self._waiting)
