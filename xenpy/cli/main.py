# SPDX-License-Identifier: MIT
"""Parses the command line and runs a verb.

Exit status: 0 done; 1 failed; 2 wrong usage; 77 this machine cannot (no Xen here).
Results go to stdout, everything else to stderr.  With --json the result of what failed is
an object with `error`, which says why, and `errno`, its name or null.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import sys
from collections.abc import Sequence
from typing import Final

from xenpy import __version__
from xenpy.backend import DeviceError
from xenpy.cli import (
    attach,
    block,
    console,
    detach,
    doctor,
    evtchn,
    grant,
    ls,
    new,
    protocol,
    proxy,
    reconfigure,
    replay,
    run,
    serve,
    tap,
    top,
    vchan,
)  # fmt: skip
from xenpy.cli.errors import EXIT_FAILED, EXIT_NO_XEN, EXIT_USAGE, DriverError, UsageError
from xenpy.errors import PeerError, XenConnectionError, XenNotFoundError
from xenpy.service import KindTakenError

OPENING: Final = {
    "open", "connect", "evtchn_open", "gnttab_open", "gntshr_open", "xc_interface_open",
}  # fmt: skip
"""Operations on XenStore and on devices of Xen's that find out that there is none."""

EPILOG = """\
examples:
  xenpy serve block                                   serve disks of stock guests
  xenpy new lamp                                      begin a driver of your own
  xenpy run lamp/lamp.py                              serve it
  xenpy protocol lamp/lamp.py                         what its other half must know
  xl block-attach web 'vdev=xvdb,backendtype=tap,script=block-xenpy,access=w,target=/srv/web.img'
  xenpy attach block 7 vdev=xvdb target=/srv/web.img  the same without xl (Xen 4.17)
  xenpy block resize 7 vdev=xvdb                      the image has another size by now
  xenpy detach block 7 vdev=xvdb
  xenpy reconfigure docs/howto/dimmer.py 7 max-level=20   set a device that is served
  xenpy block read xvdb > image                       in a guest: a disk without the kernel
  xenpy vchan listen 7 data/log > log                 bytes from another domain
  xenpy ls                                            all devices, whoever serves them
  xenpy top                                           the busiest first
  xenpy tap vbd3/7/51728                              what a disk's ring carries
  xenpy proxy block 7 vdev=xvdc target=xvdb           stand between a guest and its disk
  xenpy grant ls                                      who has mapped what
  xenpy doctor                                        what this machine lacks
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(
        prog="xenpy",
        description="Xen paravirtual drivers in Python.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"xenpy {__version__}")
    verbs = whole.add_subparsers(title="verbs", metavar="VERB", required=True)
    verbs_in_order = (
        serve, run, new, protocol, attach, reconfigure, detach, block, console, vchan, ls,
        top, tap, replay, proxy, doctor, grant, evtchn,
    )  # fmt: skip
    for verb in verbs_in_order:
        verb.add_parser(verbs)
    return whole


def _complain(error: Exception, *, as_json: bool) -> None:
    print(f"xenpy: {error}", file=sys.stderr)
    if as_json:
        number = error.errno if isinstance(error, OSError) else None
        print(json.dumps({"error": str(error), "errno": errno.errorcode.get(number or 0)}))


def _status(error: Exception) -> int:
    """The exit status that says what went wrong."""
    if isinstance(error, UsageError):
        return EXIT_USAGE
    if isinstance(error, ImportError):
        return EXIT_NO_XEN
    if isinstance(error, XenNotFoundError | XenConnectionError) and error.operation in OPENING:
        return EXIT_NO_XEN
    return EXIT_FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.  Returns the exit status."""
    whole = parser()
    args, rest = whole.parse_known_args(argv)
    if rest:
        if "words" not in args or any(word.startswith("-") for word in rest):
            whole.error(f"unrecognized arguments: {' '.join(rest)}")
        # argparse gives words that stand behind an option to nobody.
        args.words += rest
    level = logging.DEBUG if args.verbose else logging.WARNING if args.quiet else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(message)s")
    try:
        return int(args.run(args))
    except (
        UsageError, DriverError, ImportError, DeviceError, KindTakenError, PeerError, OSError,
    ) as error:  # fmt: skip
        _complain(error, as_json=getattr(args, "json", False))
        return _status(error)
    except KeyboardInterrupt:
        return 128 + 2
