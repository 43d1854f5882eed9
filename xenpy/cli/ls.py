# SPDX-License-Identifier: MIT
"""`xenpy ls`: all devices, both ends of each, whoever serves them."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from xenpy.cli.common import Verbs, add_common_options, add_rundir, kind, seconds
from xenpy.cli.table import table
from xenpy.device_counters import Counters, counters, served_by
from xenpy.device_list import Listed, list_devices
from xenpy.types import DomId, XenbusState
from xenpy.xenstore import Store

CLEAR: Final = "\x1b[H\x1b[J"
REQUESTS: Final = ("rd_req", "wr_req", "f_req", "ds_req", "tx_packets", "rx_packets")
SECTORS: Final = ("rd_sect", "wr_sect")
BYTES: Final = ("tx_bytes", "rx_bytes")
SECTOR: Final = 512
HEAD: Final = ("DEVICE", "DOMAIN", "BACKEND", "FRONTEND", "RINGS", "SERVED BY")
LAST: Final = ("DONE", "FEATURES")
LAST_OF_RATES: Final = ("DONE/S", "MIB/S")

DESCRIPTION = """\
List the devices that XenStore shows: in the control domain those of all domains, in a guest
its own and what it serves.  Whoever serves them: xenpy, Linux's backends, QEMU, anybody.

  DEVICE     KIND/DOMID/DEVID, as below backend/
  DOMAIN     the name of the frontend's domain
  BACKEND    its domain, and its state
  FRONTEND   its state
  RINGS      how many, times pages of each
  SERVED BY  a kernel module, or the process of a daemon, if it is in this domain
  DONE       requests or packets, as the backend counts them
  FEATURES   what both ends have

An end that says what went wrong has a line below.
"""
EPILOG = """\
examples:
  xenpy ls
  xenpy ls vbd3 vbd
  xenpy ls --watch              every second, with rates, until Ctrl-C
  xenpy ls --watch=10 --json    a line of JSON every ten seconds
"""


@dataclass(frozen=True)
class Line:
    """A device, and what is known of who serves it."""

    device: Listed
    server: str
    done: Counters


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "ls",
        help="all devices, whoever serves them",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "kinds", metavar="KIND", nargs="*", type=kind, help="only those below backend/KIND"
    )
    parser.add_argument(
        "--watch", metavar="SECONDS", nargs="?", const=1.0, type=seconds,
        help="again and again, with rates (every second)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    add_rundir(parser)
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    async def look() -> None:
        async with Store.open(args.store) as store:
            own = await store.domid()
            lines, at = await lines_now(store, own, args), time.monotonic()
            if args.watch is None:
                print(_as_json(lines) if args.json else _table(lines), end="", flush=True)
            while args.watch is not None:
                await asyncio.sleep(args.watch)
                before, since = lines, at
                lines, at = await lines_now(store, own, args), time.monotonic()
                rates = rates_of(lines, before, at - since)
                clear = CLEAR if sys.stdout.isatty() and not args.json else ""
                shown = _as_json(lines, rates) if args.json else _table(lines, rates)
                print(clear + shown, end="", flush=True)

    asyncio.run(look())
    return 0


async def lines_now(store: Store, own: DomId, args: argparse.Namespace) -> list[Line]:
    """The devices of `args.kinds`, and what they have done so far, as domain `own` sees them."""
    rundir = os.path.abspath(args.rundir)
    return [
        Line(device, served_by(device, own, rundir), counters(device, own))
        for device in await list_devices(store, args.kinds)
    ]


def rates_of(
    lines: Sequence[Line], before: Sequence[Line], seconds: float
) -> list[Mapping[str, float]]:
    """How many a second each of `lines` has done of what is counted since `before`."""
    known = {_key(line): line for line in before}
    return [_rates(line, known.get(_key(line)), seconds) for line in lines]


def _key(line: Line) -> tuple[DomId, str]:
    return line.device.backend_domid, line.device.name


def _rates(line: Line, before: Line | None, seconds: float) -> Mapping[str, float]:
    """How many a second of what is counted; empty if it was not there before."""
    if before is None or seconds <= 0:
        return {}
    return {
        # A device that has connected anew begins at 0.
        name: max(0, count - before.done[name]) / seconds
        for name, count in line.done.items()
        if name in before.done and name != "oo_req"
    }


def _as_json(lines: Sequence[Line], rates: Sequence[Mapping[str, float]] | None = None) -> str:
    listed: list[dict[str, object]] = []
    for at, line in enumerate(lines):
        device = line.device
        one: dict[str, object] = {
            "device": device.name,
            "kind": device.kind,
            "domid": device.domid,
            "devid": device.devid,
            "domain": device.domain,
            "backend": {
                "domid": device.backend_domid,
                "path": device.backend,
                "state": device.backend_state.name,
            },
            "frontend": {"path": device.frontend, "state": device.frontend_state.name},
            "rings": device.rings,
            "ring_pages": device.ring_pages,
            "protocol": device.protocol,
            "features": device.features,
            "served_by": line.server,
            "trouble": device.trouble,
            "counters": line.done,
        }
        if rates is not None:
            one["rates"] = {name: round(rate, 3) for name, rate in rates[at].items()}
        listed.append(one)
    return json.dumps(listed, indent=1 if rates is None else None) + "\n"


def _table(lines: Sequence[Line], rates: Sequence[Mapping[str, float]] | None = None) -> str:
    rows: list[tuple[str, ...]] = [(*HEAD, *(LAST if rates is None else LAST_OF_RATES))]
    for at, line in enumerate(lines):
        device = line.device
        last = (
            (_amount(line.done, REQUESTS), " ".join(device.features) or "-")
            if rates is None
            else (_amount(rates[at], REQUESTS), _mebibytes(rates[at]))
        )
        rows.append(
            (
                device.name,
                device.domain or "-",
                f"{device.backend_domid} {_state(device.backend, device.backend_state)}",
                _state(device.frontend, device.frontend_state),
                f"{device.rings}x{device.ring_pages}" if device.rings else "-",
                line.server or "-",
                *last,
            )
        )
    said: list[str] = []
    # A line that the terminal breaks would go on where a device's begins.
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    troubles = ["", *(line.device.trouble for line in lines)]
    for text, trouble in zip(table(rows), troubles, strict=True):
        said.append(text)
        said += textwrap.wrap(
            trouble,
            width,
            initial_indent="  ! ",
            subsequent_indent="  !   ",
            break_on_hyphens=False,
        )
    return "".join(f"{one}\n" for one in said)


def _state(path: str, state: XenbusState) -> str:
    return state.name.title().replace("_", "") if path else "gone"


def _amount(counted: Mapping[str, float], names: Sequence[str]) -> str:
    known = [counted[name] for name in names if name in counted]
    return f"{sum(known):,.0f}" if known else "-"


def _mebibytes(rates: Mapping[str, float]) -> str:
    known = [rates[name] for name in BYTES if name in rates]
    known += [rates[name] * SECTOR for name in SECTORS if name in rates]
    return f"{sum(known) / (1 << 20):,.1f}" if known else "-"
