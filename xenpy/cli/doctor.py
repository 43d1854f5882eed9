# SPDX-License-Identifier: MIT
"""`xenpy doctor`: what this machine lacks, and how to mend it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from xenpy.cli.common import Verbs, add_common_options, add_rundir, seconds
from xenpy.cli.errors import EXIT_FAILED, EXIT_NO_XEN
from xenpy.doctor import Finding, Host, Level, examine, is_xen, store_findings

NO_XEN: Final = Finding(
    Level.PROBLEM,
    "xen",
    "there is no Xen below this kernel",
    "boot Xen, or have one in a virtual machine: vagrant/xenvm up (see the tutorial)",
)
WIDTH: Final = 100

DESCRIPTION = """\
Look at this machine: Xen, the devices in /dev/xen, XenStore, daemons, kernel drivers that
take the same devices, xl, limits, and drivers of other packages.  Changes nothing.

Each line has a level: ok; note; warning, something that you may want will not work; problem,
something that xenpy is for does not work.  Below it, after ->, is what to do about it.

Exit status: 0 without a problem, 1 with one, 77 without Xen.
"""
EPILOG = """\
examples:
  xenpy doctor
  xenpy doctor --quiet          what is to be mended only
  xenpy doctor --json
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "doctor",
        help="look whether this machine can do it",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=seconds, default=5.0, help="for XenStore (5)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_rundir(parser)
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    host = Host(rundir=os.path.abspath(args.rundir))
    domid = None
    findings = [NO_XEN]
    if is_xen(host):
        of_store, domid = asyncio.run(store_findings(args.store, args.timeout))
        findings = [*examine(host), *of_store]
    if args.json:
        listed = [asdict(finding) for finding in findings]
        print(json.dumps({"domid": domid, "findings": listed}, indent=1))
    else:
        shown = [one for one in findings if not args.quiet or one.remedy]
        print(_table(shown), end="")
    if findings == [NO_XEN]:
        return EXIT_NO_XEN
    return EXIT_FAILED if any(one.level is Level.PROBLEM for one in findings) else 0


def _table(findings: Sequence[Finding]) -> str:
    lines: list[str] = []
    for one in findings:
        head = f"{one.level:8} {one.topic:12} "
        lines += textwrap.wrap(one.text, WIDTH, initial_indent=head, subsequent_indent=" " * 22)
        if one.remedy:
            lines.append(f"{'':22}-> {one.remedy}")
    return "".join(f"{line}\n" for line in lines)
