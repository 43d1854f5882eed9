# SPDX-License-Identifier: MIT
"""`xenpy serve`: run a backend as a daemon in the foreground."""

from __future__ import annotations

import argparse
import asyncio

from xenpy.attach import parse_words
from xenpy.cli.common import (
    UsageError,
    Verbs,
    add_common_options,
    find_driver,
    kind,
    wrong_usage,
)
from xenpy.daemon import serve

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
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "serve",
        help="serve devices to guests",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("driver", metavar="DRIVER", help="e.g. block")
    parser.add_argument("words", metavar="key=value", nargs="*", help="options of the driver")
    parser.add_argument(
        "--kind", metavar="KIND", type=kind,
        help="directory below backend/ (default: the driver's)",
    )  # fmt: skip
    parser.add_argument(
        "--rundir", metavar="DIR", default="/run/xenpy", help="lock files (/run/xenpy)"
    )
    parser.add_argument(
        "--stats", metavar="FILE", help="write counters as JSON there on SIGUSR1 and at the end"
    )
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    driver = find_driver(args.driver)
    with wrong_usage():
        options = parse_words(args.words)
    unknown = sorted(set(options) - set(driver.options))
    if unknown:
        known = "; ".join(f"{name}: {text}" for name, text in driver.options.items())
        raise UsageError(f"{driver.name} has no option {unknown[0]!r}.  It takes {known}")
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
