# SPDX-License-Identifier: MIT
"""`xenpy console`: the first console of a guest, or of each.

Each verb is a module of its own, `console_VERB`.
"""

from __future__ import annotations

import argparse

from xenpy.cli import console_every, console_give_back, console_take
from xenpy.cli.common import Verbs

DESCRIPTION = """\
The first console of a guest, where its kernel's messages and its login are, and which
xenconsoled serves.  take has it served here, with a log that is bounded and a socket for
several readers, and hands it back at the end, without losing what the guest prints; `xl
console` finds it all the while.  every does so for all guests, and needs no xenconsoled.
Further consoles of a guest are devices: `xenpy serve console`, `xenpy attach console`.
"""
EPILOG = """\
examples:
  xenpy console take 7 --log /var/log/web.console --socket /run/web.console
  xl console 7                                       meanwhile, in another shell
  socat - UNIX-CONNECT:/run/web.console
  xenpy console give-back 7                          after a take that was killed
  xenpy console every log-dir=/var/log/xen/console
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "console",
        help="serve the first console of a guest, or of each",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (console_take, console_give_back, console_every):
        verb.add_parser(inner)
