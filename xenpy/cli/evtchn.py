# SPDX-License-Identifier: MIT
"""`xenpy evtchn`: bind event channels and notify by hand, see who has which port.

Each verb is a module of its own, `evtchn_VERB`.
"""

from __future__ import annotations

import argparse

from xenpy.cli import evtchn_bind, evtchn_ls, evtchn_notify
from xenpy.cli.common import Verbs

DESCRIPTION = """\
Look into event channels by hand: offer a port to another domain or bind to one of its, hear
and send events, and see who has which port.  bind and notify need /dev/xen/evtchn, ls the
control domain.
"""
EPILOG = """\
examples:
  xenpy evtchn bind 7                    offers a port to domain 7, a line for each event
  xenpy evtchn bind 7 34                 binds to port 34 of domain 7
  xenpy evtchn notify 7 34               tells whoever has it, once
  xenpy evtchn ls 7                      the ports of domain 7
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "evtchn",
        help="bind event channels, notify, see who has which port",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (evtchn_bind, evtchn_notify, evtchn_ls):
        verb.add_parser(inner)
