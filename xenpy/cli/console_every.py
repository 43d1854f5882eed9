# SPDX-License-Identifier: MIT
"""`xenpy console every`: the first console of every guest, instead of xenconsoled."""

from __future__ import annotations

import argparse
import asyncio

from xenpy.attach import parse_words
from xenpy.cli.common import Verbs, add_common_options, wrong_usage
from xenpy.cli.stop import stopped
from xenpy.xenstore import Store

DESCRIPTION = """\
Serve the first console of every guest, those that are created later included, until SIGTERM
or SIGINT; each has a pty, where `xl console` finds it, and a log if log-dir= is given.  Where
xenconsoled runs, consoles are taken over from it, and handed back at the end.
"""
EPILOG = """\
examples:
  xenpy console every
  xenpy console every log-dir=/var/log/xen/console log-size=10M log-keep=5
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "every",
        help="serve the first console of every guest",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words", metavar="key=value", nargs="*", help="log-dir=, log-size=, log-keep="
    )
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from xenpy.drivers.console.every import EveryConsole
    from xenpy.drivers.console.settings import LogSettings

    with wrong_usage():
        settings = LogSettings.parse(parse_words(args.words))

    async def serve() -> None:
        async with Store.open(args.store) as store:
            await stopped(EveryConsole(store, settings).run())

    asyncio.run(serve())
    return 0
