# SPDX-License-Identifier: MIT
"""The life of one frontend device: watch, ask the table, do the step, write the state.

Everything about one device happens in one task, one step after the other.  The backend is
as hostile to a frontend as a frontend is to a backend: whatever it does costs this device
and nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from xenpy.backend import Keys
from xenpy.devlog import BoundedLog, TokenBucket
from xenpy.errors import XenConnectionError, XenError, XenTimeoutError
from xenpy.frontend import Frontend, FrontendAccess, FrontendContext
from xenpy.frontend_nodes import DeviceGoneError, FrontendNodes, read_ends
from xenpy.store_insist import STORE_PAUSE
from xenpy.types import XenbusState
from xenpy.xenbus import FrontendStep, frontend_step, parse_state
from xenpy.xenstore import Store

__all__ = ["CLOSE_BOUND", "FrontendLife"]

log = logging.getLogger(__name__)

CLOSE_BOUND: Final = 8.0
"""Seconds that requests in flight, and then the backend, may take when we close."""
MAX_ERROR_TEXT: Final = 256

QUIET: Final = {
    XenbusState.UNKNOWN, XenbusState.INITIALISING, XenbusState.INIT_WAIT, XenbusState.CLOSED,
}  # fmt: skip
"""States of a backend that holds nothing of a frontend's."""
FREE: Final = {XenbusState.UNKNOWN, XenbusState.INITIALISING, XenbusState.CLOSED}
"""States of a frontend that nobody drives."""


class FrontendLife:
    """Takes one device through its life; an async context manager.

        async with FrontendLife(store, path, factory, xen=NativeXen()) as life: ...

    Entering connects, and raises what is listed here; leaving closes, as a driver that is
    unloaded does.

    Args:
        path: the frontend's directory, absolute.
        factory: makes the driver's half.
        xen: opens its handles.
        timeout: seconds to become connected.
        take_over: connect although the nodes say that another frontend is connected, which
            may have died without closing.

    Raises:
        XenNotFoundError: there is no such device.
        PeerError: it has no backend that could be trusted with pages, or that one's keys
            make no sense.
        XenError: EBUSY, another frontend drives the device.
        XenTimeoutError: not connected in time; the hint says what the backend shows.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        factory: Callable[[FrontendContext], Frontend],
        *,
        xen: FrontendAccess,
        timeout: float = 30.0,
        take_over: bool = False,
    ) -> None:
        self._store = store
        self._path = path
        self._factory = factory
        self._xen = xen
        self._timeout = timeout
        self._take_over = take_over
        self._wake = asyncio.Event()
        self._wake.set()
        self._failure: Exception | None = None
        self._leaving = False
        self._was_connected = False
        self._task: asyncio.Task[None] | None = None
        self._seen = XenbusState.UNKNOWN
        self._pace = TokenBucket(burst=32, rate=8.0)
        self._log: logging.LoggerAdapter[logging.Logger]
        self._nodes: FrontendNodes
        self._device: Frontend
        self.phase = XenbusState.INITIALISING
        self.connected = asyncio.Event()
        """Set while the device is connected."""

    async def __aenter__(self) -> Self:
        ends = await read_ends(self._store, self._path)
        kind, domid = ends.backend.kind, ends.domid
        self._log = BoundedLog(log, f"{kind}/{domid}/{ends.backend.devid}")
        self._nodes = FrontendNodes(self._store, ends)
        self._device = self._factory(FrontendContext(ends, self._xen, self._log, self.fail))
        self._task = asyncio.create_task(self._run(), name=f"frontend {self._path}")
        try:
            await self.ready(self._timeout)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def device(self) -> Frontend:
        return self._device

    @property
    def over(self) -> bool:
        """The device is closed for good."""
        return self._task is not None and self._task.done()

    def fail(self, error: Exception) -> None:
        """The data plane has failed: close the device."""
        self._failure = self._failure or error
        self._wake.set()

    async def close(self) -> None:
        """Finish what is in flight, close, give everything back.  Harmless when closed.

        Takes `CLOSE_BOUND` seconds twice at most: what a backend does not let go of then is
        the kernel's to give back when it does.
        """
        self._leaving = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                # Whoever had a request in flight has been told of it.
                self._task.exception()

    async def ready(self, timeout: float) -> None:
        """Return once the device is connected: at once, or after it has come back.

        Raises:
            whatever ended its life.
            XenError: ESHUTDOWN, it was closed.
            XenTimeoutError: not within `timeout` seconds.
        """
        if self.connected.is_set():
            return
        task = self._task
        if task is None:
            raise XenError(errno.EBADF, "connect", "enter it first: async with", path=self._path)
        up = asyncio.create_task(self.connected.wait())
        try:
            await asyncio.wait([task, up], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        if task.done():
            if not task.cancelled():
                await task
            raise XenError(errno.ESHUTDOWN, "connect", "it was closed", path=self._path)
        if not self.connected.is_set():
            hint = f"the backend shows {self._seen.name}"
            raise XenTimeoutError(errno.ETIMEDOUT, "connect", hint, path=self._path)

    # The task

    async def _run(self) -> None:
        watched = (self._path, f"{self._nodes.ends.backend}/state")
        watchers = [asyncio.create_task(self._watch(path)) for path in watched]
        reason: Exception = XenError(errno.ESHUTDOWN, "close", path=self._path)
        try:
            await self._live()
        except DeviceGoneError as error:
            reason = XenError(errno.ENODEV, "frontend", str(error), path=self._path)
            raise reason from error
        except Exception as error:
            reason = error
            raise
        finally:
            self.connected.clear()
            for watcher in watchers:
                watcher.cancel()
            await asyncio.wait(watchers)
            await self._device.disconnect(reason)

    async def _watch(self, path: str) -> None:
        while True:
            try:
                async with self._store.watch(path) as watch:
                    async for _ in watch:
                        self._wake.set()
            except XenTimeoutError as error:
                self._log.warning("XenStore does not answer, trying again: %s", error)
            except XenError as error:
                self.fail(error)
                return

    async def _live(self) -> None:
        await self._insist(self._take_up)
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                if self._failure is not None:
                    raise self._failure
                if self._leaving:
                    await self._shut(XenError(errno.ESHUTDOWN, "close", path=self._path))
                    return
                # A backend that flaps gets 32 turns at once, then 16 a second: one that waits for
                # a token leaves it to the next.
                await asyncio.sleep(self._pace.take())
                await self._insist(self._turn)
            except DeviceGoneError:
                raise
            except Exception as error:
                await self._break_off(error)
                raise

    async def _take_up(self) -> None:
        """Find out what was before, and begin at the beginning."""
        ours, theirs = await self._nodes.own_state(), await self._nodes.observe()
        if ours not in FREE and not self._take_over:
            hint = f"another frontend shows {ours.name} there"
            raise XenError(errno.EBUSY, "connect", hint, path=self._path)
        if theirs not in QUIET:
            # It holds what the one before had, or is about to let go of it.
            await self._nodes.publish({"state": int(XenbusState.CLOSED)})
            if not await self._quiet():
                hint = "the backend does not let go of the frontend before"
                raise XenError(errno.EBUSY, "connect", hint, path=self._path)
        await self._nodes.publish({"state": int(XenbusState.INITIALISING)})

    async def _turn(self) -> None:
        """Look once, act once."""
        theirs = self._seen = await self._nodes.observe()
        step = frontend_step(self.phase, theirs)
        self._log.debug("phase %s backend %s: %s", self.phase.name, theirs.name, step.name)
        again = self.phase is theirs is XenbusState.CONNECTED
        keys: Mapping[str, str] = {}
        if again or step in (FrontendStep.PUBLISH, FrontendStep.CONNECT):
            keys = await self._nodes.backend_keys()
            if parse_state(keys.get("state")) is not theirs:
                # It has gone on since, or away.
                self._wake.set()
                return
        if step is not FrontendStep.WAIT:
            await self._perform(step, keys)
            self._wake.set()
        elif again:
            await self._device.changed(keys)

    async def _perform(self, step: FrontendStep, backend: Mapping[str, str]) -> None:
        if step is FrontendStep.PUBLISH:
            await self._publish(backend)
        elif step is FrontendStep.CONNECT:
            await self._device.connect(backend)
            await self._switch(XenbusState.CONNECTED)
            self.connected.set()
            self._was_connected = True
            self._log.debug("connected")
        elif step is FrontendStep.CLOSE:
            reason = XenError(errno.ESHUTDOWN, "close", "the backend closes it", path=self._path)
            await self._shut(reason)
            if not self._was_connected:
                # Nobody waits for a disk that may come back: it never was there.
                raise reason
        elif step is FrontendStep.RESTART:
            await self._let_go(
                XenError(errno.ECONNRESET, "io", "the backend started over", path=self._path)
            )
            await self._switch(XenbusState.INITIALISING)
        else:
            raise DeviceGoneError("the backend has gone")

    async def _publish(self, backend: Mapping[str, str]) -> None:
        try:
            keys = await self._device.publish(backend)
            await self._switch(XenbusState.INITIALISED, keys)
        except Exception as error:
            await self._let_go(error)
            raise

    async def _shut(self, reason: Exception) -> None:
        """Close in good order: what is in flight ends first, and no page is given back that
        the backend still has mapped, as long as it closes as well."""
        if self.phase is XenbusState.CLOSED:
            return
        self.connected.clear()
        if self.phase is not XenbusState.INITIALISING:
            await self._nodes.publish({"state": int(XenbusState.CLOSING)})
            with suppress(TimeoutError):
                await asyncio.wait_for(self._device.drain(), CLOSE_BOUND)
        await self._nodes.publish({"state": int(XenbusState.CLOSED)})
        self.phase = XenbusState.CLOSED
        try:
            if not await self._quiet():
                self._log.warning("the backend does not let go: the kernel keeps the pages")
        except (XenConnectionError, XenTimeoutError) as error:
            # Whoever called would try again, and find it closed: what is in flight would hang.
            self._log.warning("nobody can tell whether the backend lets go: %s", error)
        await self._let_go(reason)

    async def _break_off(self, error: Exception) -> None:
        """Somebody broke the rules: let go at once, and say why if XenStore still takes it.
        Pages that the backend has mapped are the kernel's until it lets go as well."""
        self._log.error("%s", error)
        await self._let_go(error)
        try:
            await self._nodes.write_error(str(error)[:MAX_ERROR_TEXT] or type(error).__name__)
            await self._switch(XenbusState.CLOSED)
        except (DeviceGoneError, OSError) as other:
            self._log.warning("cannot close in XenStore: %s", other)

    async def _let_go(self, reason: Exception) -> None:
        self.connected.clear()
        await self._device.disconnect(reason)

    async def _switch(self, state: XenbusState, keys: Keys | None = None) -> None:
        stale = self._device.transport_keys if keys is not None else None
        await self._nodes.publish({**(keys or {}), "state": int(state)}, stale)
        self.phase = state

    async def _quiet(self) -> bool:
        """Wait until the backend holds nothing.  Returns False if it does not in time."""
        deadline = asyncio.get_running_loop().time() + CLOSE_BOUND
        while await self._nodes.observe() not in QUIET:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0.0:
                return False
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left)
            self._wake.clear()
        self._wake.set()
        return True

    async def _insist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Do it, and again while xenstored is away, or the backend changes its state so often that
        no transaction gets through.  The device's I/O goes on meanwhile."""
        while True:
            try:
                await call()
                return
            except XenError as error:
                away = isinstance(error, XenConnectionError | XenTimeoutError)
                if self._leaving or not (away or error.errno == errno.EAGAIN):
                    raise
                self._log.warning("XenStore does not answer, trying again: %s", error)
                await asyncio.sleep(STORE_PAUSE)
