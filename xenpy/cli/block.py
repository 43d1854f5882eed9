# SPDX-License-Identifier: MIT
"""`xenpy block`: what there is to do with disks beside serving, attaching and detaching.

Each verb is a module of its own, `block_VERB`.
"""

from __future__ import annotations

import argparse

from xenpy.cli import block_bench, block_info, block_read, block_resize, block_write
from xenpy.cli.common import Verbs

DESCRIPTION = """\
info, read, write and bench connect to a disk of this domain as its guest does (a blkfront in
Python), whoever serves it: xen-blkback, QEMU, tapdisk or `xenpy serve block`.  The kernel
must not have the disk.  resize is for the domain that serves it.
"""
EPILOG = """\
examples:
  xenpy block info xvdb
  xenpy block read xvdb --length 1M > first-mebibyte
  xenpy block write xvdb < image
  xenpy block bench xvdb --op randread --depth 32 --seconds 5
  xenpy block resize 7 vdev=xvda
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "block",
        help="use a disk of this domain, resize one of another",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in (block_info, block_read, block_write, block_bench, block_resize):
        verb.add_parser(inner)
