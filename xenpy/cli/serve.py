# SPDX-License-Identifier: MIT
"""`xenpy serve`: run a backend as a daemon in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from xenpy.attach import parse_words
from xenpy.cli.common import (
    FILTER,
    RUNDIR,
    Verbs,
    add_common_options,
    add_rundir,
    filter_words,
    find_driver,
    kind,
    wrong_usage,
)  # fmt: skip
from xenpy.cli.errors import UsageError
from xenpy.daemon import serve
from xenpy.driver import Driver
from xenpy.serve_config import ServeConfig, read
from xenpy.service import Service

NO_CONFIG: Final = ServeConfig()

DESCRIPTION = """\
Serve every device of a kind that a toolstack makes in this domain, until SIGTERM or
SIGINT.  Then each device is parked: what was taken is answered, everything of the guests
is released, the guests' further I/O waits, and the next `xenpy serve` takes over.
"""
EPILOG = """\
examples:
  xenpy serve block
  xenpy serve block --kind vbd3 -v
  xenpy serve --config /etc/xenpy/block.toml
  xenpy serve block force=1          serve images although they are open elsewhere
  xenpy serve block --filter stats --filter delay,read=10

block takes: force=1   serve images although they are open elsewhere
             direct=1  go past the page cache (O_DIRECT) where the file system can
             queues=N  offer guests so many queues for a disk
             python=1  allow targets and filters in python, which run with the daemon's rights
             sector-unit=512|sector-size
                       what guests count in on disks whose sectors are larger
             tier=auto|worker|native|callback|batch
                       an engine in C in a process for each ring, one within the daemon, one
                       that calls Python, which every filter but readonly needs, or Python alone

What a disk may be made of, files, memory, NBD servers, Python: `xenpy attach --help`.

filters of block, all repeatable; `filter=` of `xenpy attach` names those of one disk:
  cow[,overlay=FILE]            keep changes in FILE, or until the daemon ends
  delay[,read=MS,write=MS,flush=MS]
  drop[,probability=P,operation=write|flush|discard|zero|all,from=SIZE,to=SIZE,seed=N]
  error[,probability=P,operation=read|write|flush|discard|zero|all,errno=EIO,
        from=SIZE,to=SIZE,seed=N]
  log,path=FILE[,limit=SIZE]    a line for each call
  python,class=FILE.py:CLASS[,key=value]      your own; needs python=1
  rate[,bps=SIZE,iops=N]
  readonly
  replay,capture=FILE[,latency=no]  give the answers of a capture, at its pace
  stats[,name=NAME]             calls, bytes and latencies among the counters
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "serve",
        help="serve devices to guests",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "driver", metavar="DRIVER", nargs="?", help="e.g. block; or FILE.py[:CLASS]"
    )
    parser.add_argument("words", metavar="key=value", nargs="*", help="options of the driver")
    parser.add_argument(
        "--config", metavar="FILE", type=Path,
        help="what the command line does not say, and SIGHUP reads again: xenpy.toml(5)",
    )  # fmt: skip
    parser.add_argument(
        "--filter", metavar="NAME[,key=value]", action="append", default=[],
        help="a filter of every disk; repeatable, the first is next to the guest",
    )  # fmt: skip
    add_daemon_options(parser, "the driver's")
    add_common_options(parser)
    parser.set_defaults(run=run)


def add_daemon_options(parser: argparse.ArgumentParser, default_kind: str) -> None:
    """What `serve_as_told` looks at."""
    parser.add_argument(
        "--kind", metavar="KIND", type=kind,
        help=f"directory below backend/ (default: {default_kind})",
    )  # fmt: skip
    add_rundir(parser, "")
    parser.add_argument(
        "--stats", metavar="FILE", help="write counters as JSON there on SIGUSR1 and at the end"
    )
    parser.add_argument(
        "--metrics", metavar="[ADDRESS:]PORT", help="serve counters to Prometheus there, by HTTP"
    )


def options_of(
    args: argparse.Namespace, driver: Driver, config: ServeConfig = NO_CONFIG
) -> Mapping[str, str]:
    """The driver's options, checked: of the file those that the command line does not give.

    Raises:
        UsageError: there is no such option, or its value makes no sense.
    """
    with wrong_usage():
        words = parse_words(args.words)
        filters = filter_words(args.filter, words)
        options = {**config.options, **words}
        if filters is None and config.filters and FILTER not in words:
            filters = shlex.join(config.filters)
        if filters is not None:
            options[FILTER] = filters
    unknown = sorted(set(options) - set(driver.options))
    if unknown:
        known = "; ".join(f"{name}: {text}" for name, text in driver.options.items())
        raise UsageError(f"{driver.name} has no option {unknown[0]!r}.  It takes {known}")
    with wrong_usage():
        driver.check_options(options)
    return options


def serve_as_told(
    args: argparse.Namespace,
    driver: Driver,
    options: Mapping[str, str],
    config: ServeConfig = NO_CONFIG,
    reload: Callable[[], Mapping[str, str]] | None = None,
) -> int:
    """Serve until told to stop.  Returns the exit status."""
    return asyncio.run(
        serve(
            driver,
            kind=args.kind or config.kind or driver.kind,
            options=options,
            store_path=args.store or config.store or None,
            rundir=args.rundir or config.rundir or RUNDIR,
            stats_path=args.stats or config.stats or None,
            reload=reload,
            observe=_observer(args.metrics or config.metrics),
        )
    )


def _observer(address: str) -> Callable[[Service], None] | None:
    """What serves metrics, if somebody asks for them.

    Raises:
        UsageError: that is no address, or prometheus_client is not installed.
    """
    if not address:
        return None
    try:
        from xenpy.metrics import parse_address, start
    except ImportError as error:
        raise UsageError(
            "metrics need the package prometheus_client (Debian: python3-prometheus-client): "
            f"{error}"
        ) from error
    with wrong_usage():
        place = parse_address(address)
    return partial(start, address=place)


def run(args: argparse.Namespace) -> int:
    name = args.driver or ""
    if args.config is not None and re.match(r"[a-z][a-z0-9-]*=", name):
        # The driver is in the file, and this is the first of the words.
        args.words.insert(0, name)
        name = ""
    config = _config(args)
    if not (name or config.driver):
        raise UsageError("which driver?  Give DRIVER, e.g. block, or driver = in --config FILE")
    driver = find_driver(name or config.driver)

    def reload() -> Mapping[str, str]:
        try:
            again = _config(args)
            options = options_of(args, driver, again)
        except UsageError as error:
            raise ValueError(str(error)) from error
        _set_log(args, again)
        return options

    options = options_of(args, driver, config)
    _set_log(args, config)
    return serve_as_told(args, driver, options, config, reload if args.config else None)


def _config(args: argparse.Namespace) -> ServeConfig:
    """The file, if there is one.

    Raises:
        UsageError: it is no configuration.
    """
    if args.config is None:
        return NO_CONFIG
    with wrong_usage():
        return read(args.config)


def _set_log(args: argparse.Namespace, config: ServeConfig) -> None:
    """As the file says, or as without one; the command line goes before it."""
    if not (args.verbose or args.quiet):
        logging.getLogger().setLevel((config.log or "info").upper())
