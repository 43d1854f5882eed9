# SPDX-License-Identifier: MIT
"""`xenpy evtchn ls`: which ports a domain has, and where they lead."""

from __future__ import annotations

import argparse
import errno
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from xenpy.cli.common import Verbs, add_common_options, domid
from xenpy.cli.table import table
from xenpy.errors import XenError

if TYPE_CHECKING:
    from xenpy.ctrl import PortInfo

DESCRIPTION = """\
List the ports of domain DOMID, or of all domains, and what each is bound to: another domain's
port, a virtual or a physical interrupt, or nothing yet.  In the control domain only.
"""
EPILOG = """\
examples:
  xenpy evtchn ls
  xenpy evtchn ls 7
  xenpy evtchn ls 7 --peer 0 --json
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "ls",
        help="which ports a domain has, and where they lead",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("domid", metavar="DOMID", type=domid, nargs="?", help="whose (all)")
    parser.add_argument(
        "--peer", metavar="DOMID", type=domid, help="only those that lead to that domain"
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # Here, since it needs the C part, and --help does not.
    from xenpy.ctrl import Control

    with Control() as control:
        whose = [one.domid for one in control.domains()] if args.domid is None else [args.domid]
        found: list[PortInfo] = []
        for one in whose:
            try:
                found += control.event_channels(one)
            except XenError as error:
                # One of all may have gone meanwhile.
                if error.errno != errno.ESRCH or args.domid is not None:
                    raise
    if args.peer is not None:
        found = [one for one in found if one.remote_domid == args.peer]
    print(json.dumps([asdict(one) for one in found]) if args.json else _shown(found))
    return 0


def _shown(found: Sequence[PortInfo]) -> str:
    rows = [("DOMAIN", "PORT", "VCPU", "BOUND TO")]
    rows += [(str(one.domid), str(one.port), str(one.vcpu), _end(one)) for one in found]
    return "\n".join(table(rows))


def _end(one: PortInfo) -> str:
    if one.bound_to == "interdomain":
        return f"domain {one.remote_domid} port {one.remote_port}"
    if one.bound_to == "unbound":
        return f"nothing yet: domain {one.remote_domid} may"
    return one.bound_to if one.irq is None else f"{one.bound_to} {one.irq}"
