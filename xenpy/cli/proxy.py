# SPDX-License-Identifier: MIT
"""`xenpy proxy`: stand between a guest and the backend that really has its disk."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shlex
import signal
from collections.abc import Mapping, Sequence
from typing import Final

from xenpy.attach import DevicePlan, Endpoints, attach, detach, parse_words
from xenpy.cli.common import (
    Verbs,
    add_device_options,
    add_rundir,
    find_driver,
    wrong_usage,
)
from xenpy.cli.errors import UsageError
from xenpy.control import Control
from xenpy.driver import Driver
from xenpy.errors import XenTimeoutError
from xenpy.service import Service, claim_kind
from xenpy.xenstore import NotYet, Reader, Store

log = logging.getLogger(__name__)

SCHEME: Final = "xen:"

DESCRIPTION = """\
Be the backend of a guest's disk and the frontend of the disk behind it, with filters in
between, until SIGINT or SIGTERM.  The disk behind is one that any backend serves to this
domain: target= names it as `xenpy block` does, xvdb, its number or its frontend's directory.
The kernel here must not drive it.  What passes can be watched: xenpy tap, as it says.
At the end the guest is asked to let go of its disk; one that does not loses it.
"""
EPILOG = """\
examples:
  xenpy proxy block 7 vdev=xvdc target=xvdb --filter log,path=/srv/calls
  xenpy proxy block 7 vdev=xvdc target=xvdb --filter delay,read=20 --filter stats
  xenpy proxy block 7 vdev=xvdc target=xvdb --filter python,class=/srv/rotate_filter.py:Rotate
`xenpy serve --help` lists the filters.
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "proxy",
        help="stand between a guest and another backend",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--filter", metavar="NAME[,key=value]", action="append", default=[],
        help="repeatable; the first is next to the guest",
    )  # fmt: skip
    add_rundir(parser)
    add_device_options(parser, served_here=True)
    parser.set_defaults(run=run)


def plan_of(args: argparse.Namespace, driver: Driver) -> DevicePlan:
    """The nodes of the guest's half.

    Raises:
        UsageError: the driver does not understand a word.
    """
    with wrong_usage():
        words = dict(parse_words(args.words))
        if "target" not in words:
            raise UsageError("which disk is behind it?  Give target=xvdb")
        if not words["target"].startswith(SCHEME):
            words["target"] = SCHEME + words["target"]
        if args.filter:
            if "filter" in words:
                raise UsageError("filter= and --filter are the same: give one of them")
            words["filter"] = shlex.join(args.filter)
        plan = driver.plan(words, driver.kind)
        # A directory of its own: a daemon may serve the driver's at the same time.
        kind = args.kind or f"{driver.kind}-proxy-{args.domid}-{plan.devid}"
        return driver.plan(words, kind)


def run(args: argparse.Namespace) -> int:
    driver = find_driver(args.driver)
    return asyncio.run(_Proxy(driver, plan_of(args, driver), args).run())


class _Proxy:
    """One device, served as long as the process lives.

    Args:
        driver: whose device it is.
        plan: of the guest's half.
        args: of the command line.
    """

    def __init__(self, driver: Driver, plan: DevicePlan, args: argparse.Namespace) -> None:
        self._driver = driver
        self._plan = plan
        self._args = args
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Returns the exit status: 0, or 1 if the guest had to be robbed of its disk."""
        args, kind = self._args, self._plan.backend_kind
        with claim_kind(kind, args.rundir):
            async with Store.open(args.store) as store:
                domid = await store.domid()
                # Whoever started this wrote the filters, and they run for him.
                options = {"python": "1"}
                service = Service(store, kind, self._driver.backend, options=options, domid=domid)
                loop = asyncio.get_running_loop()
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, self._stop.set)
                tasks = [
                    asyncio.create_task(service.run()),
                    asyncio.create_task(Control(service, self._driver.name, args.rundir).run()),
                ]
                try:
                    ends = await attach(
                        store, args.domid, self._plan, backend_domid=domid, timeout=args.timeout
                    )
                    self._say(ends)
                    try:
                        await self._until_over(store, ends, tasks[0])
                    finally:
                        counters = _counters(service)
                        status = await self._take_away(store, ends)
                    log.info("%s", counters)
                    return status
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    def _say(self, ends: Endpoints) -> None:
        if self._args.json:
            print(json.dumps({"frontend": ends.frontend, "backend": ends.backend}), flush=True)
        else:
            name = f"{self._plan.backend_kind}/{self._args.domid}/{self._plan.devid}"
            print(name, flush=True)

    async def _until_over(self, store: Store, ends: Endpoints, serving: asyncio.Task[None]) -> None:
        """Until somebody wants it to end, or the device has gone, with its guest or without."""

        async def gone(reader: Reader) -> None:
            if await reader.exists(ends.backend):
                raise NotYet

        stopping = asyncio.create_task(self._stop.wait())
        going = asyncio.create_task(store.wait(gone))
        try:
            await asyncio.wait([serving, stopping, going], return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
        finally:
            for task in (stopping, going):
                task.cancel()
            await asyncio.gather(stopping, going, return_exceptions=True)

    async def _take_away(self, store: Store, ends: Endpoints) -> int:
        timeout = self._args.timeout
        try:
            await detach(store, ends, timeout=timeout)
        except XenTimeoutError:
            log.warning("the guest does not let go: its disk is taken away")
            await detach(store, ends, timeout=timeout, force=True)
            return 1
        return 0


def _counters(service: Service) -> str:
    """What has passed, in a line."""
    stats: Sequence[Mapping[str, int]] = [life.stats() for life in service.devices.values()]
    return ", ".join(f"{name} {value}" for each in stats for name, value in each.items() if value)
