# SPDX-License-Identifier: MIT
"""`xenpy proxy`: stand between a guest and the backend that really has its disk."""

from __future__ import annotations

import argparse
import asyncio
from typing import Final

from xenpy.attach import DevicePlan, parse_words
from xenpy.cli.common import (
    FILTER,
    Verbs,
    add_device_options,
    add_rundir,
    filter_words,
    find_driver,
    wrong_usage,
)
from xenpy.cli.errors import UsageError
from xenpy.cli.proxy_device import Proxy
from xenpy.driver import Driver
from xenpy.service import claim_kind
from xenpy.xenstore import Store

SCHEME: Final = "xen:"

DESCRIPTION = """\
Be the backend of a guest's disk and the frontend of the disk behind it, with filters in
between, until SIGINT or SIGTERM.  The disk behind is one that any backend serves to this
domain: target= names it as `xenpy block` does, xvdb, its number or its frontend's directory.
The kernel here must not drive it.  What passes can be watched: xenpy tap, as it says.
At the end the guest is asked to let go of its disk; one that does not loses it, and at once
if the signal comes twice.
"""
EPILOG = """\
examples:
  xenpy proxy block 7 vdev=xvdc target=xvdb --filter log,path=/srv/calls
  xenpy proxy block 7 vdev=xvdc target=xvdb --filter delay,read=20 --filter stats
  xenpy proxy block 7 vdev=xvdc target=xvdb --filter python,class=/srv/rotate_filter.py:Rotate
`xenpy serve --help` lists the filters.
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "proxy",
        help="stand between a guest and another backend",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--filter", metavar="NAME[,key=value]", action="append", default=[],
        help="repeatable; the first is next to the guest",
    )  # fmt: skip
    add_rundir(parser)
    add_device_options(parser, served_here=True)
    parser.set_defaults(run=run)


def plan_of(args: argparse.Namespace, driver: Driver) -> DevicePlan:
    """The nodes of the guest's half.

    Raises:
        UsageError: the driver does not understand a word.
    """
    with wrong_usage():
        words = dict(parse_words(args.words))
        if "target" not in words:
            raise UsageError("which disk is behind it?  Give target=xvdb")
        if not words["target"].startswith(SCHEME):
            words["target"] = SCHEME + words["target"]
        filters = filter_words(args.filter, words)
        if filters is not None:
            words[FILTER] = filters
        plan = driver.plan(words, driver.kind)
        # A directory of its own: a daemon may serve the driver's at the same time.
        kind = args.kind or f"{driver.kind}-proxy-{args.domid}-{plan.devid}"
        return driver.plan(words, kind)


def run(args: argparse.Namespace) -> int:
    driver = find_driver(args.driver)
    plan = plan_of(args, driver)

    async def stand() -> int:
        with claim_kind(plan.backend_kind, args.rundir):
            async with Store.open(args.store) as store:
                return await Proxy(store, await store.domid(), driver, plan, args).run()

    return asyncio.run(stand())
