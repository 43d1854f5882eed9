# SPDX-License-Identifier: MIT
"""`xenpy grant`: share pages, map and copy those of others, see who holds what.

Each verb is a module of its own, `grant_VERB`.
"""

from __future__ import annotations

import argparse

from xenpy.cli import grant_copy, grant_ls, grant_map, grant_share
from xenpy.cli.common import Verbs

DESCRIPTION = """\
Look into the sharing of memory by hand: give pages to another domain, take what it gives, and
see who holds what.  share needs /dev/xen/gntalloc (modprobe xen-gntalloc), map and copy need
/dev/xen/gntdev, ls the control domain.
"""
EPILOG = """\
examples:
  echo hello | xenpy grant share 7 --from -       prints a reference, holds until Ctrl-C
  xenpy grant map 7 8                             a page that domain 7 has granted to us
  xenpy grant map 7 8 --hold --seconds 60         keep it mapped
  xenpy grant copy 7 8 --offset 64 --length 16
  xenpy grant ls                                  what is mapped, by whom
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "grant",
        help="share pages, map those of others, see who holds what",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (grant_share, grant_map, grant_copy, grant_ls):
        verb.add_parser(inner)
