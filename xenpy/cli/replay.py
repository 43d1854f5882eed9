# SPDX-License-Identifier: MIT
"""`xenpy replay`: a capture, fed to another disk."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

from xenpy.cli.block_common import add_disk_options, opened
from xenpy.cli.common import Verbs, wrong_usage
from xenpy.cli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.drivers.block.replay import Replayed, Wanted

DESCRIPTION = """\
Ask a disk for what `xenpy tap` has seen another one asked for, as a frontend in this domain: the
same operations at the same places, of the same shape, in the order in which they were taken.  Then
say whether every answer has the status that it had in the capture.

The backend may be anybody's.  A capture has no data: what is written is a pattern, so that a
capture with writes destroys what is on the disk.
"""
EPILOG = """\
examples:
  xenpy replay disk.capture xvdb --destroy
  xenpy replay disk.capture xvdb --destroy --pace --json

Exit status: 0, all answers are the same; 1, some are not.
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "replay",
        help="feed a capture to a disk",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("capture", metavar="FILE", type=Path, help="of `xenpy tap`; - is stdin")
    add_disk_options(parser)
    parser.add_argument(
        "--destroy", action="store_true", help="what is on the disk may be overwritten"
    )
    parser.add_argument(
        "--depth", metavar="N", type=int, default=32, help="requests in flight (32)"
    )
    parser.add_argument(
        "--pace", action="store_true", help="no request earlier than in the capture"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    # Here, since it needs the C part, and --help does not.
    from xenpy.drivers.block.replay import replay

    if args.depth < 1:
        raise UsageError(f"depth is {args.depth}; give 1 or more")
    requests = _requests(args.capture)
    if any(request.writes for request in requests) and not args.destroy:
        raise UsageError("the capture has writes, and they destroy the disk; --destroy allows it")

    async def ask() -> Replayed:
        async with opened(args) as disk:
            return await replay(disk, requests, depth=args.depth, pace=args.pace)

    return _say(asyncio.run(ask()), as_json=args.json)


def _requests(path: Path) -> Sequence[Wanted]:
    with wrong_usage():
        if str(path) == "-":
            return _read(sys.stdin.buffer)
        with path.open("rb") as file:
            return _read(file)


def _read(file: IO[bytes]) -> Sequence[Wanted]:
    """
    Raises:
        ValueError: that is no capture, or not of a disk.
    """
    from xenpy.capture import Capture
    from xenpy.drivers.block.replay import wanted

    capture = Capture(file)
    if capture.head.driver != "block":
        raise ValueError(f"a capture of {capture.head.device}, which is no disk of block's")
    requests = [wanted(capture.head.layout, record) for _, record in capture]
    if capture.tail is not None and capture.tail.lost:
        print(f"xenpy: the capture lacks {capture.tail.lost} requests", file=sys.stderr)
    return requests


def _say(done: Replayed, *, as_json: bool) -> int:
    different = done.requests - done.same
    if as_json:
        examples = [
            {"request": dict(one.request.fields), "status": one.status} for one in done.examples
        ]
        said = {
            "requests": done.requests, "same": done.same, "different": different,
            "seconds": round(done.seconds, 3), "examples": examples,
        }  # fmt: skip
        print(json.dumps(said))
    else:
        print(f"{done.requests} requests in {done.seconds:.1f} s, {done.same} answered the same")
        for one in done.examples:
            fields = one.request.fields
            print(
                f"  {fields['op']} at {fields['sector']}: {fields['status']} in the "
                f"capture, {one.status} here"
            )
    return 1 if different else 0
