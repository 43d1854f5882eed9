# SPDX-License-Identifier: MIT
"""`xenpy reconfigure`: other settings for a device that is served."""

from __future__ import annotations

import argparse
import asyncio
import json

from xenpy.attach import endpoints, parse_words, refresh
from xenpy.cli.common import Verbs, add_device_options, find_driver, wrong_usage
from xenpy.cli.errors import UsageError
from xenpy.xenstore import Store

DESCRIPTION = """\
Give a device other settings while it is served: words that `xenpy attach` takes as well.
Its backend takes them all, or says why it does not, and then none of them holds.

For drivers of your own that have settings; a disk's size is told by `xenpy block resize`.
"""
EPILOG = """\
example:
  xenpy reconfigure docs/howto/dimmer.py 7 devid=1 max-level=20
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "reconfigure",
        help="give a device other settings while it is served",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_device_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    driver = find_driver(args.driver)
    with wrong_usage():
        words = parse_words(args.words)
        plan = driver.plan(words, args.kind or driver.kind)
    settings = {key: text for key, text in words.items() if key in driver.settings}
    if not settings:
        known = " ".join(f"{key}=..." for key in driver.settings)
        has = f"there is: {known}" if known else f"{driver.name} has none"
        raise UsageError(f"no setting to change is given; {has}")
    ends = endpoints(args.domid, plan.frontend_kind, plan.backend_kind, plan.devid, args.backend)

    async def change() -> None:
        async with Store.open(args.store) as store:
            await refresh(store, ends, settings, timeout=args.timeout)

    asyncio.run(change())
    if args.json:
        print(json.dumps({"backend": ends.backend, "settings": settings}))
    else:
        said = " ".join(f"{key}={text}" for key, text in settings.items())
        print(f"{plan.backend_kind}/{args.domid}/{plan.devid}: {said}")
    return 0
