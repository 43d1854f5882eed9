# SPDX-License-Identifier: MIT
"""What several verbs share: options, and finding a driver by its name."""

from __future__ import annotations

import argparse
import importlib
from importlib.metadata import entry_points
from typing import Final, Protocol

from xenpy.driver import Driver
from xenpy.types import DOM0, DOMID_FIRST_RESERVED, DomId

__all__ = ["Verbs", "add_common_options", "add_device_options", "domid", "find_driver"]

BUILT_IN: Final = {"block": "xenpy.drivers.block.driver"}
"""So that a checkout that is not installed works as well: it has no entry points."""


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
    """The driver called `name`: built in, or of any package by entry point `xenpy.drivers`.

    Raises:
        ValueError: there is none; the text lists those that there are.
    """
    if name in BUILT_IN:
        found: object = importlib.import_module(BUILT_IN[name]).DRIVER
    else:
        others = {point.name: point for point in entry_points(group="xenpy.drivers")}
        if name not in others:
            known = ", ".join(sorted({*BUILT_IN, *others}))
            raise ValueError(f"no driver {name!r}; there are: {known}")
        found = others[name].load()
    if not isinstance(found, Driver):
        raise ValueError(f"the entry point of {name!r} is {found!r}, not a xenpy.driver.Driver")
    return found


def domid(text: str) -> DomId:
    """An argument that is a domid."""
    if not (text.isascii() and text.isdigit()) or int(text) >= DOMID_FIRST_RESERVED:
        raise argparse.ArgumentTypeError(f"{text!r} is not a domid; `xl domid NAME` tells it")
    return DomId(int(text))


def add_common_options(parser: argparse.ArgumentParser) -> None:
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument(
        "-v", "--verbose", action="store_true", help="trace every state step and key"
    )
    noise.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    parser.add_argument(
        "--store", metavar="PATH", help="socket of xenstored, or /dev/xen/xenbus (default: found)"
    )


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Arguments that name one device: DRIVER DOMID key=value..."""
    parser.add_argument("driver", metavar="DRIVER", help="e.g. block")
    parser.add_argument("domid", metavar="DOMID", type=domid, help="the frontend's domain")
    parser.add_argument("words", metavar="key=value", nargs="*", help="what the driver takes")
    parser.add_argument(
        "--kind", metavar="KIND", help="directory below backend/ (default: the driver's)"
    )
    parser.add_argument(
        "--backend", metavar="DOMID", type=domid, default=DOM0, help="the backend's domain (0)"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=10.0, help="how long to wait (10)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_common_options(parser)
