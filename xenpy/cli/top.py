# SPDX-License-Identifier: MIT
"""`xenpy top`: the busiest devices first, and what their daemons cost."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Final

from xenpy.cli.common import Verbs, add_common_options, add_rundir, check_count, kind, seconds
from xenpy.cli.ls import REQUESTS, SECTOR, Line, lines_now, rates_of
from xenpy.cli.table import table
from xenpy.process_load import Load, load_of
from xenpy.types import DomId
from xenpy.xenstore import Store

HOME: Final = "\x1b[H"
TO_LINE_END: Final = "\x1b[K"
TO_END: Final = "\x1b[J"
OTHER_SCREEN: Final = ("\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l")
"""To a screen of its own without a cursor, and back."""
MIB: Final = 1 << 20
HEAD: Final = (
    "DEVICE", "DOMAIN", "READ/S", "WRITE/S", "FLUSH/S", "READ MIB/S", "WRITE MIB/S", "ERRORS",
    "SERVED BY",
)  # fmt: skip
DAEMON: Final = re.compile(r"xenpy (\d+)")

Rates = Mapping[str, float]

DESCRIPTION = """\
Show the devices that `xenpy ls` lists, the busiest first, again and again; and of each daemon
of xenpy's how much of a processor and of memory it takes, its workers included.

  READ, WRITE  requests; of a network, packets to the guest and from it
  ERRORS       that a disk has answered so far

On a terminal it has the screen to itself, and these keys:
  t r w m d  sort by total requests, reads, writes, MiB, or the device's name
  q          end; so does Ctrl-C
"""
EPILOG = """\
examples:
  xenpy top
  xenpy top vbd3 --sort mib
  xenpy top --count 1 --json    the rates of one second, for a script
"""


def _sum(*names: str) -> Callable[[Rates], float]:
    return lambda rates: sum(rates.get(name, 0.0) for name in names)


_reads: Final = _sum("rd_req", "rx_packets")
_writes: Final = _sum("wr_req", "ds_req", "tx_packets")
_requests: Final = _sum(*REQUESTS)


def _read_bytes(rates: Rates) -> float:
    return rates.get("rd_sect", 0.0) * SECTOR + rates.get("rx_bytes", 0.0)


def _write_bytes(rates: Rates) -> float:
    return rates.get("wr_sect", 0.0) * SECTOR + rates.get("tx_bytes", 0.0)


def _bytes(rates: Rates) -> float:
    return _read_bytes(rates) + _write_bytes(rates)


def _nothing(_: Rates) -> float:
    return 0.0


SORTS: Final[Mapping[str, Callable[[Rates], float]]] = {
    "requests": _requests,
    "reads": _reads,
    "writes": _writes,
    "mib": _bytes,
    "device": _nothing,
}
KEYS: Final = {"t": "requests", "r": "reads", "w": "writes", "m": "mib", "d": "device"}


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "top",
        help="the busiest devices, and what their daemons cost",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "kinds", metavar="KIND", nargs="*", type=kind, help="only those below backend/KIND"
    )
    parser.add_argument(
        "--interval", metavar="SECONDS", type=seconds, default=1.0, help="between two looks (1)"
    )
    parser.add_argument("--count", metavar="N", type=int, help="end after N looks")
    parser.add_argument(
        "--sort", choices=list(SORTS), default="requests", help="what comes first (requests)"
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each look")
    add_rundir(parser)
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_count(args.count)
    asyncio.run(_Top(args).run())
    return 0


@dataclass(frozen=True)
class _Look:
    """Everything at one time; `at` by time.monotonic."""

    lines: Sequence[Line]
    loads: Mapping[int, Load]
    at: float


@dataclass(frozen=True)
class _Row:
    """What a device does."""

    line: Line
    rates: Rates


@dataclass(frozen=True)
class _View:
    """What lies between two looks.

    Attributes:
        shares: of a processor that each daemon takes: process -> 0.5 for a half.
    """

    seconds: float
    rows: Sequence[_Row]
    loads: Mapping[int, Load]
    shares: Mapping[int, float]

    @classmethod
    def between(cls, before: _Look, now: _Look) -> _View:
        passed = now.at - before.at
        rates = rates_of(now.lines, before.lines, passed)
        shares = {
            # A worker that has ended takes what it had used along.
            pid: max(0.0, load.seconds - before.loads[pid].seconds) / passed
            for pid, load in now.loads.items()
            if pid in before.loads and passed > 0
        }
        rows = [_Row(line, rate) for line, rate in zip(now.lines, rates, strict=True)]
        return cls(passed, rows, now.loads, shares)

    def sorted(self, by: str) -> list[_Row]:
        """By rate, downwards, and of equals by name."""
        measure = SORTS[by]
        return sorted(self.rows, key=lambda row: (-measure(row.rates), row.line.device.name))


class _Top:
    """What is shown, and in which order by now."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._by: str = args.sort
        self._over = False
        self._typed = asyncio.Event()
        self._view: _View | None = None
        # A look or two are for whoever reads on.
        terminal = sys.stdout.isatty() and sys.stdin.isatty()
        self._full = terminal and args.count is None and not args.json

    async def run(self) -> None:
        """Until somebody has seen enough."""
        args = self._args
        async with Store.open(args.store) as store:
            own = await store.domid()
            with self._screen():
                now = await self._look(store, own)
                for _ in count() if args.count is None else range(args.count):
                    before = now
                    await self._pause(before.at + args.interval)
                    if self._over:
                        return
                    now = await self._look(store, own)
                    self._view = _View.between(before, now)
                    self._show()

    async def _look(self, store: Store, own: DomId) -> _Look:
        lines = await lines_now(store, own, self._args)
        pids = {int(found[1]) for line in lines if (found := DAEMON.fullmatch(line.server))}
        loads = {pid: load for pid in sorted(pids) if (load := load_of(pid)) is not None}
        return _Look(lines, loads, time.monotonic())

    async def _pause(self, until: float) -> None:
        while not self._over and (rest := until - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._typed.wait(), rest)
                self._typed.clear()
                self._show()

    def _show(self) -> None:
        if self._view is None:
            return
        if self._args.json:
            print(json.dumps(_as_json(self._view, self._by)), flush=True)
            return
        lines = _lines(self._view, self._by)
        if not self._full:
            print("".join(f"{line}\n" for line in lines), flush=True)
            return
        width, height = shutil.get_terminal_size((100, 24))
        shown = [f"{line[:width]}{TO_LINE_END}" for line in lines[: height - 1]]
        print(HOME + "\r\n".join(shown) + TO_END, end="", flush=True)

    @contextmanager
    def _screen(self) -> Generator[None]:
        """The terminal to itself, as it was afterwards; without one, nothing."""
        if not self._full:
            yield
            return
        fd, loop = sys.stdin.fileno(), asyncio.get_running_loop()
        before = termios.tcgetattr(fd)
        try:
            # By themselves they would end it with the terminal as it is by now.
            for number in (signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._end)
            tty.setcbreak(fd)
            loop.add_reader(fd, self._read_keys, fd)
            print(OTHER_SCREEN[0], end="", flush=True)
            yield
        finally:
            loop.remove_reader(fd)
            # The terminal may have gone.
            with suppress(OSError):
                print(OTHER_SCREEN[1], end="", flush=True)
            with suppress(termios.error):
                termios.tcsetattr(fd, termios.TCSADRAIN, before)

    def _end(self) -> None:
        self._over = True
        self._typed.set()

    def _read_keys(self, fd: int) -> None:
        typed = ""
        with suppress(OSError):
            typed = os.read(fd, 64).decode("ascii", "replace")
        if not typed or "q" in typed:
            # Without a terminal any more, nobody could end it.
            self._end()
        for key in typed:
            self._by = KEYS.get(key, self._by)
        self._typed.set()


def _lines(view: _View, by: str) -> list[str]:
    """For people."""
    rows = view.sorted(by)
    totals = [sum(measure(row.rates) for row in rows) for measure in (_requests, _bytes)]
    said = [
        f"{time.strftime('%H:%M:%S')}  {len(rows)} devices, {totals[0]:,.0f} requests/s, "
        f"{totals[1] / MIB:,.1f} MiB/s; by {by}"
    ]
    for pid, share in view.shares.items():
        resident = view.loads[pid].resident
        said.append(f"xenpy {pid}: {share:.0%} of a CPU, {resident / MIB:,.0f} MiB resident")
    cells = [HEAD, *(_cells(row) for row in rows)]
    names = table([cell[:2] for cell in cells])
    figures = table([cell[2:8] for cell in cells], right=True)
    width = max(map(len, names))
    return [
        *said,
        "",
        *(
            f"{name.ljust(width)}  {figure}  {cell[8]}"
            for name, figure, cell in zip(names, figures, cells, strict=True)
        ),
    ]


def _cells(row: _Row) -> tuple[str, ...]:
    rates, line = row.rates, row.line
    if rates:
        amounts = [f"{measure(rates):,.0f}" for measure in (_reads, _writes)]
        # Not everybody counts them.
        amounts.append(f"{rates['f_req']:,.0f}" if "f_req" in rates else "-")
        amounts += [f"{measure(rates) / MIB:,.1f}" for measure in (_read_bytes, _write_bytes)]
    else:
        amounts = ["-"] * 5
    errors = str(line.done["errors"]) if "errors" in line.done else "-"
    return (line.device.name, line.device.domain or "-", *amounts, errors, line.server or "-")


def _as_json(view: _View, by: str) -> dict[str, object]:
    return {
        "seconds": round(view.seconds, 3),
        "devices": [
            {
                "device": row.line.device.name,
                "backend_domid": row.line.device.backend_domid,
                "domain": row.line.device.domain,
                "served_by": row.line.server,
                "rates": {name: round(rate, 3) for name, rate in row.rates.items()},
                "counters": row.line.done,
            }
            for row in view.sorted(by)
        ],
        "daemons": [
            {
                "pid": pid,
                "cpu": round(share, 4),
                "resident": view.loads[pid].resident,
            }
            for pid, share in view.shares.items()
        ],
    }
