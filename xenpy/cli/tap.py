# SPDX-License-Identifier: MIT
"""`xenpy tap`: what a live ring carries, as it goes."""

from __future__ import annotations

import argparse
import asyncio
import errno
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.cli.common import (
    Verbs,
    add_common_options,
    add_rundir,
    check_count,
    seconds,
    wrong_usage,
)
from xenpy.cli.errors import UsageError
from xenpy.errors import XenError

if TYPE_CHECKING:
    from xenpy.cli.tap_sinks import Sink
    from xenpy.cli.tap_sources import Source

DESCRIPTION = """\
Show every request of a device with its answer and how long that took, until the device
disconnects, SIGTERM or SIGINT.  Data is never looked at.

A device that a xenpy daemon serves on this machine is tapped exactly: the engine records each
request before it answers, and this reads along.  If it is too slow it loses requests, oldest
first, and says how many; the guest waits for nobody.

A device between two halves of others', such as Linux's xen-blkfront and xen-blkback, is tapped
passively, in the backend's domain: its rings are mapped once more, to read, and looked at from
time to time.  What was asked for and answered between two looks is lost, and counted; a latency
is as exact as the interval is short.
"""
EPILOG = """\
examples:
  xenpy tap vbd3/1/51712
  xenpy tap vbd3/1/51712 --write disk.capture
  xenpy tap --read disk.capture
  xenpy tap vbd3/1/51712 --json | jq 'select(.op == "write")'
  xenpy tap vbd/1/51712 --interval 0.0002 --seconds 60
  xenpy tap vbd3/1/51712 --count 1000 --wait 10

  xenpy tap xor/7/0 --protocol xor.py

`xenpy ls` shows the devices; `xenpy replay` feeds a capture to another disk.
"""
RETRY: Final = 0.1
EXACT_INTERVAL: Final = 0.05
PASSIVE_INTERVAL: Final = 0.0005


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "tap",
        help="show what a live ring carries",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "device", metavar="KIND/DOMID/DEVID", nargs="?", help="as `xenpy ls` names it"
    )
    parser.add_argument("--json", action="store_true", help="print lines of JSON")
    parser.add_argument(
        "-w", "--write", metavar="FILE", type=Path, help="write a capture there, and show nothing"
    )
    parser.add_argument("-r", "--read", metavar="FILE", type=Path, help="show a capture")
    parser.add_argument(
        "--protocol", metavar="FILE.py[:NAME]",
        help="what messages of a protocol of your own mean; without it, they are bytes",
    )  # fmt: skip
    parser.add_argument("--count", metavar="N", type=int, help="end after so many requests")
    parser.add_argument("--seconds", metavar="SECONDS", type=seconds, help="end after so long")
    parser.add_argument(
        "--wait", metavar="SECONDS", type=seconds, help="for the device to be connected, so long"
    )
    parser.add_argument(
        "--interval", metavar="SECONDS", type=seconds,
        help=f"between two looks ({EXACT_INTERVAL}; passive: {PASSIVE_INTERVAL})",
    )  # fmt: skip
    parser.add_argument(
        "--passive", action="store_true", help="look at the rings also where a daemon would record"
    )
    add_rundir(parser)
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if (args.device is None) == (args.read is None):
        raise UsageError("give KIND/DOMID/DEVID, as `xenpy ls` shows them, or --read FILE")
    if args.device is not None and args.device.count("/") != 2:
        raise UsageError(f"{args.device!r} is no KIND/DOMID/DEVID; `xenpy ls` shows them")
    check_count(args.count)
    if args.protocol is not None and args.write is not None:
        raise UsageError("a capture is bytes; give --protocol when you --read it")
    if args.read is not None and args.write is not None and _same(args.read, args.write):
        raise UsageError(f"{args.write} is the capture that is read; --write another file")
    return asyncio.run(_tap(args))


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


async def _tap(args: argparse.Namespace) -> int:
    async with _source(args) as source:
        with ExitStack() as held:
            return await _Tap(args, source, _sink(args, source, held)).run()


def _sink(args: argparse.Namespace, source: Source, held: ExitStack) -> Sink:
    """Opened only now: what a file had is not lost to a device that is not there."""
    from xenpy.capture import Writer
    from xenpy.cli.tap_sinks import Shown, decode_of

    if args.write is not None:
        return Writer(held.enter_context(args.write.open("wb")), source.head)
    return Shown(source.head, decode_of(source.head, args.protocol), as_json=args.json)


@asynccontextmanager
async def _source(args: argparse.Namespace) -> AsyncGenerator[Source]:
    """As soon as there is one, or within `--wait`."""
    if args.read is not None:
        from xenpy.cli.tap_sources import FileSource

        with wrong_usage(), args.read.open("rb") as file:
            async with FileSource(file) as captured:
                yield captured
        return
    deadline = time.monotonic() + (args.wait or 0.0)
    async with AsyncExitStack() as held:
        while True:
            try:
                source = await _entered(args, held)
                break
            except XenError:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(RETRY)
        yield source


async def _entered(args: argparse.Namespace, held: AsyncExitStack) -> Source:
    """Exact if a daemon here serves the device, else passive."""
    # Here, so that --help is there without the C part.
    from xenpy.cli.tap_sources import ExactSource, PassiveSource
    from xenpy.control import ask
    from xenpy.xenstore import Store

    if not args.passive:
        try:
            answer = await asyncio.to_thread(ask, args.device, args.rundir)
            return await held.enter_async_context(ExactSource(args.device, answer))
        except XenError as error:
            if error.errno != errno.ESRCH:
                raise
    async with AsyncExitStack() as ours:
        store = await ours.enter_async_context(Store.open(args.store))
        interval = args.interval or PASSIVE_INTERVAL
        passive = await ours.enter_async_context(PassiveSource(args.device, store, interval))
        held.push_async_exit(ours.pop_all())
    return passive


class _Tap:
    """From the first record to the last."""

    def __init__(self, args: argparse.Namespace, source: Source, sink: Sink) -> None:
        self._args = args
        self._source = source
        self._sink = sink
        self._start = time.monotonic_ns()
        self._count = 0
        self._stop = asyncio.Event()

    async def run(self) -> int:
        from xenpy.capture import Tail

        source = self._source
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        print(f"xenpy: {source.head}", file=sys.stderr, flush=True)
        over = False
        while not over and not self._enough():
            over = self._stop.is_set() or source.over.is_set() or self._late()
            # Also in the end: what was recorded between the last look and the end.
            while await self._look() and not (over or self._stop.is_set() or self._late()):
                pass
            if not over:
                await self._pause()
        tail = Tail(self._count, source.lost, self._passed())
        self._sink.end(tail)
        print(f"xenpy: {tail}", file=sys.stderr)
        return 0

    def _passed(self) -> float:
        return (time.monotonic_ns() - self._start) / 1e9

    def _enough(self) -> bool:
        return self._args.count is not None and self._count >= self._args.count

    def _late(self) -> bool:
        return self._args.seconds is not None and self._passed() >= self._args.seconds

    async def _pause(self) -> None:
        """Until it is time to look again: a passive look is one itself."""
        if not self._source.head.exact:
            return
        left = self._args.interval or EXACT_INTERVAL
        if self._args.seconds is not None:
            left = max(0.0, min(left, self._args.seconds - self._passed()))
        waiting = [asyncio.ensure_future(one.wait()) for one in (self._stop, self._source.over)]
        await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()

    async def _look(self) -> bool:
        """Whether there was something."""
        from xenpy.trace import RECORD

        found = await self._source.look()
        for ring, records in found:
            count = len(records) // RECORD.size
            if self._args.count is not None:
                count = min(count, self._args.count - self._count)
            if count:
                self._sink.add(ring, records[: count * RECORD.size])
            self._count += count
        return bool(found) and not self._enough()
