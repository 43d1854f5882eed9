# SPDX-License-Identifier: MIT
"""A `Service` as a daemon: claim the kind, serve, park on SIGTERM; on SIGHUP, other options."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from xenpy.control import Control
from xenpy.driver import Driver
from xenpy.sd_notify import Manager
from xenpy.service import Service, claim_kind
from xenpy.xenstore import Store

__all__ = ["PARK_BOUND", "serve"]

log = logging.getLogger(__name__)

PARK_BOUND: Final = 20.0
"""Seconds that parking may take; a store that hangs longer loses its device's orderly end."""


async def serve(
    driver: Driver,
    *,
    kind: str,
    options: Mapping[str, str],
    store_path: str | None = None,
    rundir: str = "/run/xenpy",
    stats_path: str | None = None,
    reload: Callable[[], Mapping[str, str]] | None = None,
    manager: Manager | None = None,
    observe: Callable[[Service], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, then park every device.

    Args:
        reload: called on SIGHUP, for the options of devices that come after that; what it raises,
            an OSError or a ValueError, is logged, and the options stay as they are.
        manager: who is told how it goes; by default whoever started the process.
        observe: called in the event loop once there is a service, before it serves.

    Returns:
        The exit status: 0, or 1 if a device could not be parked.

    Raises:
        KindTakenError: another daemon serves this kind.
    """
    manager = manager or Manager()
    with claim_kind(kind, rundir):
        async with Store.open(store_path) as store:
            service = Service(
                store, kind, driver.backend, options=options, domid=await store.domid()
            )
            if observe is not None:
                observe(service)
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
            # Both in any case: what they do by themselves is to end a process.
            loop.add_signal_handler(signal.SIGUSR1, _write_stats, service, stats_path)
            loop.add_signal_handler(signal.SIGHUP, _reload, service, reload, manager, stop)
            running = asyncio.create_task(service.run())
            stopping = asyncio.create_task(stop.wait())
            telling = asyncio.create_task(_tell(service, manager, stop))
            showing = asyncio.create_task(Control(service, driver.name, rundir).run())
            log.info("serving %s", kind)
            await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            manager.stopping()
            if running.done():
                for task in (stopping, telling, showing):
                    task.cancel()
                await running
            if stats_path is not None:
                _write_stats(service, stats_path)
            stuck = await service.park(PARK_BOUND)
            for task in (telling, showing):
                task.cancel()
            await asyncio.gather(showing, return_exceptions=True)
            for name in stuck:
                log.error("%s did not let go within %g s: not parked", name, PARK_BOUND)
            running.cancel()
            with suppress(asyncio.CancelledError):
                if not stuck:
                    await running
            return 1 if stuck else 0


async def _tell(service: Service, manager: Manager, stop: asyncio.Event) -> None:
    alive = asyncio.create_task(manager.keep_alive())
    try:
        await service.ready.wait()
        if not stop.is_set():
            manager.ready(f"serving {service.kind}")
        await alive
    finally:
        alive.cancel()


def _reload(
    service: Service,
    reload: Callable[[], Mapping[str, str]] | None,
    manager: Manager,
    stop: asyncio.Event,
) -> None:
    if reload is None:
        log.warning("SIGHUP: there is no configuration to be read again (--config)")
        return
    # Who is told of a reload expects to hear of its end, and not before the start's.
    told = service.ready.is_set() and not stop.is_set()
    if told:
        manager.reloading()
    try:
        service.options = reload()
        log.info("options of new devices: %s", dict(service.options) or "none")
    except Exception as error:
        # A driver's own check runs here, and may fail in any way.
        known = isinstance(error, OSError | ValueError)
        log.error("the options stay as they are: %s", error, exc_info=None if known else error)
    if told:
        manager.ready(f"serving {service.kind}")


def _write_stats(service: Service, path: str | None) -> None:
    """Replace the file at once, so that a reader never sees half of it."""
    if path is None:
        log.warning("SIGUSR1: there is no file for counters (--stats)")
        return
    figures = {
        "devices": {
            life.name: {"state": life.phase.name, "draining": life.draining, **life.stats()}
            for life in service.devices.values()
        },
        "deferred_unmaps": service.deferred_unmaps,
    }
    temporary = Path(f"{path}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
        temporary.replace(path)
    except OSError as error:
        log.error("cannot write the counters: %s", error)
