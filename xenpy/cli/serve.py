# SPDX-License-Identifier: MIT
"""`xenpy serve`: run a backend as a daemon in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import shlex
from collections.abc import Mapping

from xenpy.attach import parse_words
from xenpy.cli.common import Verbs, add_common_options, add_rundir, find_driver, kind, wrong_usage
from xenpy.cli.errors import UsageError
from xenpy.daemon import serve
from xenpy.driver import Driver

DESCRIPTION = """\
Serve every device of a kind that a toolstack makes in this domain, until SIGTERM or
SIGINT.  Then each device is parked: what was taken is answered, everything of the guests
is released, the guests' further I/O waits, and the next `xenpy serve` takes over.
"""
EPILOG = """\
examples:
  xenpy serve block
  xenpy serve block --kind vbd3 -v
  xenpy serve block force=1          serve images although they are open elsewhere
  xenpy serve block --filter stats --filter delay,read=10

block takes: force=1   serve images although they are open elsewhere
             direct=1  go past the page cache (O_DIRECT) where the file system can
             queues=N  offer guests so many queues for a disk
             python=1  allow targets python:..., which run code with the daemon's rights
             sector-unit=512|sector-size
                       what guests count in on disks whose sectors are larger
             tier=auto|worker|native|callback|batch
                       an engine in C in a process for each ring, one within the daemon, one
                       that calls Python, which every filter but readonly needs, or Python alone

What a disk may be made of, files, memory, NBD servers, Python: `xenpy attach --help`.

filters of block, all repeatable; `filter=` of `xenpy attach` names those of one disk:
  cow[,overlay=FILE]            keep changes in FILE, or until the daemon ends
  delay[,read=MS,write=MS,flush=MS]
  error[,probability=P,operation=read|write|flush|discard|zero|all,errno=EIO,
        from=SIZE,to=SIZE,seed=N]
  log,path=FILE[,limit=SIZE]    a line for each call
  rate[,bps=SIZE,iops=N]
  readonly
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
    parser.add_argument("driver", metavar="DRIVER", help="e.g. block; or FILE.py[:CLASS]")
    parser.add_argument("words", metavar="key=value", nargs="*", help="options of the driver")
    parser.add_argument(
        "--filter", metavar="NAME[,key=value]", action="append",
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
    add_rundir(parser)
    parser.add_argument(
        "--stats", metavar="FILE", help="write counters as JSON there on SIGUSR1 and at the end"
    )


def options_of(args: argparse.Namespace, driver: Driver) -> Mapping[str, str]:
    """The driver's options, checked.

    Raises:
        UsageError: there is no such option, or its value makes no sense.
    """
    with wrong_usage():
        options = parse_words(args.words)
        if args.filter:
            if "filter" in options:
                raise UsageError("filter= and --filter are the same: give one of them")
            options = {**options, "filter": shlex.join(args.filter)}
    unknown = sorted(set(options) - set(driver.options))
    if unknown:
        known = "; ".join(f"{name}: {text}" for name, text in driver.options.items())
        raise UsageError(f"{driver.name} has no option {unknown[0]!r}.  It takes {known}")
    with wrong_usage():
        driver.check_options(options)
    return options


def serve_as_told(args: argparse.Namespace, driver: Driver, options: Mapping[str, str]) -> int:
    """Serve until told to stop.  Returns the exit status."""
    return asyncio.run(
        serve(
            driver,
            kind=args.kind or driver.kind,
            options=options,
            store_path=args.store,
            rundir=args.rundir,
            stats_path=args.stats,
        )
    )


def run(args: argparse.Namespace) -> int:
    driver = find_driver(args.driver)
    return serve_as_told(args, driver, options_of(args, driver))
