# SPDX-License-Identifier: MIT
"""`xenpy evtchn notify`: bind to a port that a domain offers, and notify it."""

from __future__ import annotations

import argparse
import time

from xenpy.cli.common import Verbs, add_common_options, domid, port
from xenpy.cli.errors import UsageError

DESCRIPTION = """\
Bind to the PORT that domain DOMID offers, which fires there, notify it, and let go of it.
"""
EPILOG = """\
examples:
  xenpy evtchn notify 7 34
  xenpy evtchn notify 7 34 --count 10 --interval 0.5

A port that somebody else has bound to cannot be notified: an event channel has two ends.
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "notify",
        help="notify a port that a domain offers",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("domid", metavar="DOMID", type=domid, help="who offers it")
    parser.add_argument("port", metavar="PORT", type=port, help="which port of its")
    parser.add_argument("--count", metavar="N", type=int, default=1, help="how often (1)")
    parser.add_argument(
        "--interval", metavar="S", type=float, default=0.1, help="seconds in between (0.1)"
    )
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # Here, since it needs the C part, and --help does not.
    from xenpy.evtchn import EventChannels

    if args.count < 1 or not 0 <= args.interval < float("inf"):
        raise UsageError("--count is 1 at least, and --interval no less than 0")
    with EventChannels() as channels:
        own = channels.bind_interdomain(args.domid, args.port)
        for number in range(args.count):
            if number:
                time.sleep(args.interval)
            channels.notify(own)
    return 0
