# SPDX-License-Identifier: MIT
"""The life of one backend device: watch, ask the table, do the step, write the state.

Everything about one device happens in one task, one step after the other, so that a
frontend that toggles its state can never have two steps run at once (XSA-350).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

from xenpy.backend import Device, DeviceContext, DeviceError, Keys, Recorded
from xenpy.device_nodes import (
    ATTACHED,
    PARKED,
    DeviceNodes,
    NodesGoneError,
    NodesRemadeError,
    StartedOverError,
    error_text,
)
from xenpy.device_refresh import Refresher
from xenpy.devlog import TokenBucket
from xenpy.errors import PeerError, XenTimeoutError
from xenpy.types import XenbusState
from xenpy.xenbus import BackendStep, backend_step
from xenpy.xenstore import Store

__all__ = ["DISCONNECT_BOUND", "DeviceLife", "Outcome"]

DISCONNECT_BOUND: Final = 8.0
"""Seconds that a close may take before the device is parked as draining; libxl waits 10."""
SERVING: Final = (XenbusState.CONNECTED, XenbusState.CLOSING)


class Outcome(Enum):
    """How a device's life ended."""

    REMOVED = "the toolstack removed it"
    REPLACED = "the toolstack made it anew under the same path"
    PARKED = "the daemon ends; the next one takes over"
    GIVEN_UP = "the daemon ends; the next one cannot take over"


class DeviceLife:
    """Takes one device through its life.  `run` ends when the device is gone."""

    def __init__(
        self, store: Store, context: DeviceContext, factory: Callable[[DeviceContext], Device]
    ) -> None:
        self._store = store
        self._context = context
        self._nodes = DeviceNodes(store, context)
        self._log = context.log
        context.on_failure = self._data_plane_failed
        self._device = factory(context)
        self._refresher = Refresher(self._nodes, context, self._device, DISCONNECT_BOUND)
        self._wake = asyncio.Event()
        self._wake.set()
        self._failure: Exception | None = None
        self._domain_is_gone = False
        self._parking = False
        self._replaced = False
        self._refused = False
        self._pace = TokenBucket(burst=16, rate=4.0)
        self._glances = TokenBucket(burst=32, rate=16.0)
        self.phase = XenbusState.INITIALISING
        self.draining = False

    @property
    def name(self) -> str:
        return self._context.name

    @property
    def context(self) -> DeviceContext:
        return self._context

    def stats(self) -> Mapping[str, int]:
        return self._device.stats()

    def recorded(self) -> Recorded | None:
        return self._device.recorded()

    def poke(self) -> None:
        """Something about this device may have changed: look again."""
        self._wake.set()

    def domain_gone(self) -> None:
        """The frontend's domain has died; its nodes may outlive it."""
        self._domain_is_gone = True
        self._wake.set()

    def park(self) -> None:
        """Answer what has been taken, let go of everything, leave the nodes as they are."""
        self._parking = True
        self._wake.set()

    def replaced(self) -> None:
        """The toolstack has made the device anew while this one drains, and the new one has a
        life of its own: from now on the nodes are that one's."""
        self._replaced = True

    async def run(self) -> Outcome:
        """Live until the device is gone.  Returns how it ended; never raises for what a
        frontend or a driver does, only for a lost store or cancellation."""
        try:
            async with asyncio.TaskGroup() as group:
                watcher = group.create_task(self._watch_frontend())
                try:
                    return await self._live()
                finally:
                    watcher.cancel()
        except BaseExceptionGroup as errors:
            # A group of one, nearly always: the store's own error says more than the group.
            raise errors.exceptions[0] from None

    async def _watch_frontend(self) -> None:
        # One coalescing watch on `state` alone: a guest that writes 10^5 keys costs one
        # event at most (XSA-349), and its other keys are read at connect only.  One that writes
        # `state` again and again gets 32 looks at once, then 16 a second.
        while True:
            try:
                async with self._store.watch(f"{self._context.frontend_path}/state") as watch:
                    async for _ in watch:
                        self._wake.set()
                        if delay := self._glances.take():
                            await asyncio.sleep(delay)
            except XenTimeoutError as error:
                self._log.warning("XenStore does not answer, trying again: %s", error)

    async def _live(self) -> Outcome:
        try:
            await self._start_from_nodes()
            while True:
                await self._wake.wait()
                self._wake.clear()
                outcome = await self._turn()
                if outcome is not None:
                    break
        except NodesRemadeError:
            outcome = Outcome.REPLACED
        except NodesGoneError:
            outcome = Outcome.REMOVED
        except asyncio.CancelledError:
            # The process ends without parking.  A store that hangs must not hold it up:
            # the kernel unmaps what is left.
            await asyncio.wait([asyncio.create_task(self._let_go())], timeout=DISCONNECT_BOUND)
            raise
        except Exception:
            # xenstored refuses what a life needs: a quota, a right.
            await self._let_go()
            raise
        await self._let_go()
        return outcome

    async def _turn(self) -> Outcome | None:
        """Look once, act once.  Returns an outcome when the life is over."""
        if self._parking:
            return await self._park()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            await self._fail(failure)
        await self._refresher.look(self.phase)
        node, theirs, online = await self._observe()
        step = backend_step(self.phase, node, theirs, online=online)
        self._log.debug(
            "phase %s node %s frontend %s online %d: %s",
            self.phase.name, node.name, theirs.name, online, step.name,
        )  # fmt: skip
        if step is BackendStep.REPLACE:
            return Outcome.REPLACED
        idle = step is BackendStep.WAIT or (self._refused and online)
        if self._domain_is_gone and (idle or step is BackendStep.REMOVE):
            await self._clear_away()
        if step is BackendStep.REMOVE:
            return Outcome.REMOVED
        if idle:
            return None
        if await self._held_back(step):
            # What was seen before the pause says nothing any more.
            return None
        try:
            await self._perform(step, online=online)
        except NodesGoneError:
            raise
        except Exception as error:
            await self._fail(error)
        self._wake.set()
        return None

    async def _observe(self) -> tuple[XenbusState, XenbusState, bool]:
        node, theirs, online = await self._nodes.observe()
        # The nodes of a domain may outlive it.
        return node, XenbusState.UNKNOWN if self._domain_is_gone else theirs, online

    async def _held_back(self, step: BackendStep) -> bool:
        """A frontend that flaps gets 16 steps at once, then four a second.  Returns True
        after a pause."""
        delay = self._pace.take()
        if delay == 0.0:
            return False
        self._log.info("the frontend changes state too fast: %s waits", step.name)
        await asyncio.sleep(delay)
        self._wake.set()
        return True

    async def _perform(self, step: BackendStep, *, online: bool) -> None:
        if step is BackendStep.PREPARE:
            await self._prepare()
        elif step is BackendStep.CONNECT:
            await self._connect()
        elif step is BackendStep.FOLLOW_CLOSING:
            await self._switch(XenbusState.CLOSING)
        elif step is BackendStep.DISCONNECT:
            # For good, if it is not online: the toolstack may give the image to another guest
            # as soon as it reads Closed.
            await self._disconnect(close=not online)
            await self._switch(XenbusState.CLOSED)
        elif step is BackendStep.RESTART:
            await self._disconnect()
            await self._prepare()

    async def _prepare(self) -> None:
        try:
            keys = await self._device.prepare()
        except DeviceError as error:
            await self._refuse(error)
            return
        await self._nodes.tell_frontend(self._device.frontend_keys())
        await self._switch(XenbusState.INIT_WAIT, {**keys, "hotplug-status": "connected"})

    async def _connect(self) -> None:
        frontend = await self._nodes.frontend_keys()
        keys = await self._device.connect(frontend)
        try:
            await self._switch(XenbusState.CONNECTED, keys, frontend)
        except StartedOverError:
            # It closed while we still showed InitWait, and may not wait for another: what we
            # have mapped are the rings it had before.
            self._log.info("the frontend started over")
            await self._disconnect()
        else:
            await self._nodes.write_error(None)
            self._log.info("connected")

    async def _clear_away(self) -> None:
        """Nodes that `xenpy attach` made are unknown to xl: when the domain has died,
        nobody else removes them, and a domain that reuses the domid would inherit them."""
        if self._context.backend_keys.get(ATTACHED) == "1":
            await self._nodes.remove(self.phase)
            raise NodesGoneError

    async def _end_of_service(self, close: bool) -> None:
        await self._device.disconnect()
        if close:
            await self._device.close()

    async def _disconnect(self, *, close: bool = False) -> Exception | None:
        """Disconnect, and close if so told, however long it takes.

        Returns:
            What has gone wrong with the connection so far; it says nothing about the next.

        Raises:
            NodesRemadeError: meanwhile the nodes have become another life's.
        """
        await self._drain(close)
        if self._replaced:
            raise NodesRemadeError
        failure, self._failure = self._failure, None
        return failure

    async def _drain(self, close: bool) -> None:
        """Past the bound the device is draining.

        The state stays at Closing meanwhile: Closed would promise that nothing of the
        guest is held.
        """
        closing = asyncio.ensure_future(self._end_of_service(close))
        try:
            done, _ = await asyncio.wait([closing], timeout=DISCONNECT_BOUND)
            if not done:
                self.draining = True
                self._log.warning("the store does not answer: draining")
                self.context.deferred.on_left()
                await asyncio.wait([closing])
                self._log.warning("drained")
        finally:
            self.draining = False
        await closing

    async def _start_from_nodes(self) -> None:
        """Find out what an earlier daemon left behind."""
        node, theirs, _ = await self._observe()
        if node is XenbusState.CLOSED:
            self.phase = XenbusState.CLOSED
        if node not in (XenbusState.CONNECTED, XenbusState.CLOSING):
            return
        if theirs not in (XenbusState.INITIALISED, *SERVING):
            # Closed, or gone, while nobody looked: a fresh start serves whoever comes next.
            await self._switch(XenbusState.CLOSED)
            return
        if node is XenbusState.CONNECTED and await self._nodes.get(PARKED) == "1":
            await self._resume()
            return
        # Requests past rsp_prod may have been overwritten by responses never pushed, so
        # that nobody can say what is outstanding.
        await self._fail(DeviceError("the daemon that served this device ended without parking it"))

    async def _resume(self) -> None:
        try:
            await self._device.prepare()
            frontend = await self._nodes.frontend_keys()
            # Not later: from `connect` on requests are taken, and of a daemon that dies then
            # nobody can say what is outstanding.
            await self._nodes.rm(PARKED)
            keys = await self._device.connect(frontend)
            await self._switch(XenbusState.CONNECTED, keys)
        except NodesGoneError:
            raise
        except Exception as error:
            await self._fail(error)
        else:
            self._log.info("taken over from the daemon before")

    async def _park(self) -> Outcome:
        connected = self.phase is XenbusState.CONNECTED
        failure = await self._disconnect()
        if connected and (failure := failure or await self._hand_over()):
            # What is outstanding, or lost, the next daemon could not tell.
            await self._fail(failure)
            return Outcome.GIVEN_UP
        if connected:
            await self._nodes.publish(self.phase, {PARKED: 1})
            self._log.info("parked")
        return Outcome.PARKED

    async def _hand_over(self) -> Exception | None:
        """Why the next daemon may not take the device over."""
        try:
            async with asyncio.timeout(DISCONNECT_BOUND):
                reason = await self._device.hand_over()
        except TimeoutError:
            reason = "the store does not answer"
        except Exception as error:
            return error
        return DeviceError(reason) if reason else None

    async def _refuse(self, error: DeviceError) -> None:
        """The operator's mistake.  InitWait, so that libxl goes on to run the hotplug
        script, which finds `hotplug-error` and shows it; without, `xl` waits 10 s for
        nothing.  The frontend is ignored until the toolstack takes the device away."""
        self._refused = True
        self._log.error("refused: %s", error)
        text = error_text(error)
        await self._nodes.write_error(text)
        keys = {"hotplug-error": text, "hotplug-status": "error"}
        await self._switch(XenbusState.INIT_WAIT, keys)

    async def _fail(self, error: Exception) -> None:
        """This device is broken; let go of it, say why, and let the frontend close."""
        text = error_text(error)
        if isinstance(error, PeerError):
            self._log.error("the frontend broke the protocol: %s", text)
        elif isinstance(error, DeviceError | OSError):
            self._log.error("%s", text)
        else:
            self._log.error("the driver failed: %s", text, exc_info=error)
        await self._disconnect()
        await self._nodes.write_error(text)
        await self._switch(XenbusState.CLOSING)

    def _data_plane_failed(self, error: Exception) -> None:
        self._failure = error
        self._wake.set()

    async def _switch(
        self,
        state: XenbusState,
        keys: Keys | None = None,
        frontend: Mapping[str, str] | None = None,
    ) -> None:
        await self._nodes.publish(self.phase, {**(keys or {}), "state": int(state)}, frontend)
        self.phase = state

    async def _let_go(self) -> None:
        """The life is over: whatever way it ended, hold nothing any more."""
        try:
            await self._drain(close=False)
        except Exception:
            self._log.exception("the last disconnect failed")
        finally:
            await self._device.close()
