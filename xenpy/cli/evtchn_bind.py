# SPDX-License-Identifier: MIT
"""`xenpy evtchn bind`: have an end of an event channel, and say when it fires."""

from __future__ import annotations

import argparse
import json
import time

from xenpy.cli.common import Verbs, add_common_options, domid, port, seconds
from xenpy.cli.hold import Hold

DESCRIPTION = """\
Offer a port to domain DOMID, or bind to the PORT that it offers; print our own port, and a line
for each time that it fires, until Enter, SIGTERM or SIGINT.  Events that come faster than they are
printed are one.
"""
EPILOG = """\
examples:
  xenpy evtchn bind 7
  xenpy evtchn bind 7 34 --count 1         status 0 once there was an event
  xenpy evtchn bind 7 --seconds 60 --json

A port that has been bound fires at once: Xen cannot know what was missed.
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "bind",
        help="have an end of an event channel, say when it fires",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("domid", metavar="DOMID", type=domid, help="who has the other end")
    parser.add_argument("port", metavar="PORT", type=port, nargs="?", help="that it has offered")
    parser.add_argument("--count", metavar="N", type=int, help="end after so many events")
    parser.add_argument("--seconds", metavar="S", type=seconds, help="end after that")
    parser.add_argument("--json", action="store_true", help="print lines of JSON")
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # Here, since it needs the C part, and --help does not.
    from xenpy.evtchn import EventChannels

    began = time.monotonic()
    deadline = None if args.seconds is None else began + args.seconds
    heard = 0
    with EventChannels() as channels, Hold() as here:
        if args.port is None:
            own = channels.bind_unbound(args.domid)
        else:
            own = channels.bind_interdomain(args.domid, args.port)
        print(json.dumps({"port": own}) if args.json else own, flush=True)
        while args.count is None or heard < args.count:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not here.wait(left, channels.fileno()):
                break
            ports = channels.pending()
            at = time.monotonic() - began
            heard += len(ports)
            if ports:
                said = {"event": heard, "seconds": round(at, 6)}
                text = f"event {heard}, after {at:.6f} s"
                print(json.dumps(said) if args.json else text, flush=True)
            channels.unmask(ports)
    return 0 if args.count is None or heard >= args.count else 1
