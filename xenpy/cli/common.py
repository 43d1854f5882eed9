# SPDX-License-Identifier: MIT
"""What several verbs share: options, and finding a driver by its name."""

from __future__ import annotations

import argparse
import importlib
import math
import re
import shlex
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Protocol

from xenpy.attach import DevicePlan, parse_words
from xenpy.cli.errors import DriverError, UsageError
from xenpy.driver import Driver
from xenpy.paths import KIND
from xenpy.types import DOM0, DOMID_FIRST_RESERVED, PORTS_LIMIT, DomId, Port

__all__ = [
    "FILTER",
    "RUNDIR",
    "Verbs",
    "add_common_options",
    "add_device_options",
    "add_rundir",
    "check_count",
    "domid",
    "filter_words",
    "find_driver",
    "installed_driver",
    "kind",
    "plan_of",
    "port",
    "seconds",
    "size",
    "wrong_usage",
]

BUILT_IN: Final = {name: f"xenpy.drivers.{name}.driver" for name in ("block", "console")}
"""So that a checkout that is not installed works as well: it has no entry points."""

FILTER: Final = "filter"
RUNDIR: Final = "/run/xenpy"
UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@contextmanager
def wrong_usage() -> Generator[None]:
    """Whatever is wrong with a value in here is the operator's mistake."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


class Verbs(Protocol):
    """Where a verb puts its parser: what `ArgumentParser.add_subparsers` returns."""

    def add_parser(
        self,
        name: str,
        *,
        help: str,
        description: str,
        epilog: str,
        formatter_class: type[argparse.HelpFormatter],
    ) -> argparse.ArgumentParser: ...


def find_driver(name: str) -> Driver:
    """The driver called `name`: built in, of any package by entry point `xenpy.drivers`, or in a
    file, FILE.py or FILE.py:Class.

    Raises:
        UsageError: there is none; the text lists those that there are.
        DriverError: it cannot be imported, or is none.
        ImportError: xenpy's own C part cannot be loaded here.
    """
    if name.endswith(".py") or ".py:" in name:
        # Here, since it needs the C part, and --help does not.
        from xenpy.cli.own import driver_in

        return driver_in(name)
    return installed_driver(name)


def installed_driver(name: str) -> Driver:
    """As `find_driver`, but never a file: for a name that is not the operator's own word.

    Raises:
        UsageError, DriverError, ImportError: as there.
    """
    if name in BUILT_IN:
        found: object = importlib.import_module(BUILT_IN[name]).DRIVER
    else:
        others = {point.name: point for point in entry_points(group="xenpy.drivers")}
        if name not in others:
            known = ", ".join(sorted({*BUILT_IN, *others}))
            raise UsageError(f"no driver {name!r}; there are: {known}")
        found = _load(others[name])
    if not isinstance(found, Driver):
        raise DriverError(f"the entry point of {name!r} is {found!r}, not a xenpy.driver.Driver")
    return found


def _load(point: EntryPoint) -> object:
    try:
        return point.load()
    except Exception as error:
        # Somebody else's code runs here, and may fail in any way.
        origin = f" of {point.dist.name}" if point.dist is not None else ""
        raise DriverError(
            f"the driver {point.name!r}{origin} cannot be loaded from {point.value}: "
            f"{type(error).__name__}: {error}"
        ) from error


def plan_of(args: argparse.Namespace) -> DevicePlan:
    """The nodes of the device that `add_device_options` names.

    Raises:
        UsageError: the driver does not understand a word.
    """
    driver = find_driver(args.driver)
    with wrong_usage():
        return driver.plan(parse_words(args.words), args.kind or driver.kind)


def domid(text: str) -> DomId:
    """An argument that is a domid."""
    if not (text.isascii() and text.isdigit()) or int(text) >= DOMID_FIRST_RESERVED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a domid; `xl domid NAME` tells it")
    return DomId(int(text))


def kind(text: str) -> str:
    """An argument that names a directory below `backend/`."""
    if not KIND.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a directory in XenStore")
    return text


def port(text: str) -> Port:
    """An argument that is an event channel's number."""
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < PORTS_LIMIT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port of an event channel")
    return Port(int(text))


def seconds(text: str) -> float:
    """An argument that is a time-out."""
    try:
        count = float(text)
    except ValueError:
        count = math.nan
    if not 0.0 < count < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return count


def size(text: str) -> int:
    """An argument that is a number of bytes: 4096, 4K, 1M, 2G."""
    found = re.fullmatch(r"([0-9]{1,20})([KMGT]?)", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes; give 4096, 4K, 1M, 2G")
    return int(found[1]) * UNITS[found[2]]


def check_count(count: int | None) -> None:
    """How often somebody wants something, if he says.

    Raises:
        UsageError: not once.
    """
    if count is not None and count < 1:
        raise UsageError(f"--count is {count}; give 1 or more")


def filter_words(given: Sequence[str], words: Mapping[str, str]) -> str | None:
    """What `--filter` gave, as the one word `filter`; None if it gave nothing.

    Raises:
        UsageError: that word is among `words` as well.
    """
    if given and FILTER in words:
        raise UsageError("filter= and --filter are the same: give one of them")
    return shlex.join(given) if given else None


def add_common_options(parser: argparse.ArgumentParser) -> None:
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument(
        "-v", "--verbose", action="store_true", help="trace every state step and key"
    )
    noise.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    parser.add_argument(
        "--store", metavar="PATH", help="socket of xenstored, or /dev/xen/xenbus (default: found)"
    )


def add_rundir(parser: argparse.ArgumentParser, default: str = RUNDIR) -> None:
    """Where daemons say that they are there."""
    parser.add_argument(
        "--rundir", metavar="DIR", default=default, help=f"lock files of daemons ({RUNDIR})"
    )


def add_device_options(
    parser: argparse.ArgumentParser, driver: str | None = None, *, served_here: bool = False
) -> None:
    """Arguments that name one device: DRIVER DOMID key=value...

    Args:
        driver: of a verb that is this driver's own; it is not asked for then.
        served_here: the backend is this process, and its domain no question.
    """
    if driver is None:
        parser.add_argument("driver", metavar="DRIVER", help="e.g. block; or FILE.py[:CLASS]")
    else:
        parser.set_defaults(driver=driver)
    parser.add_argument("domid", metavar="DOMID", type=domid, help="the frontend's domain")
    parser.add_argument("words", metavar="key=value", nargs="*", help="what the driver takes")
    parser.add_argument(
        "--kind", metavar="KIND", type=kind,
        help="directory below backend/ (default: the driver's)",
    )  # fmt: skip
    if not served_here:
        parser.add_argument(
            "--backend", metavar="DOMID", type=domid, default=DOM0, help="the backend's domain (0)"
        )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=seconds, default=10.0, help="how long to wait (10)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_common_options(parser)
