# SPDX-License-Identifier: MIT
"""`xenpy console take`: serve a guest's first console, and hand it back at the end."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from contextlib import closing
from pathlib import Path

from xenpy.cli.common import Verbs, add_common_options, domid, wrong_usage
from xenpy.cli.stop import stopped
from xenpy.devlog import BoundedLog
from xenpy.xenstore import Store

log = logging.getLogger(__name__)

DESCRIPTION = """\
Take a guest's first console over from xenconsoled, which goes on to serve all others, and
hand it back on SIGTERM or SIGINT, or when the guest has gone.  All that the guest prints goes
to a pty, which `xl console` finds; to --log, if given; and to each reader of --socket.
"""
EPILOG = """\
examples:
  xenpy console take 7
  xenpy console take 7 --log /var/log/web.console --log-size 10M --log-keep 5
  xenpy console take 7 --socket /run/web.console     several may read, and type
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "take",
        help="serve a guest's first console",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("domid", metavar="DOMID", type=domid, help="whose; `xl domid NAME`")
    parser.add_argument("--log", metavar="FILE", help="write what is printed there")
    parser.add_argument("--log-size", metavar="SIZE", help="put FILE aside when so large (1M)")
    parser.add_argument("--log-keep", metavar="N", help="how many put aside to keep (1)")
    parser.add_argument("--socket", metavar="PATH", help="a Unix socket for readers")
    parser.add_argument(
        "--json", action="store_true", help="say on stdout, as a line of JSON, where it is served"
    )
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    asyncio.run(stopped(take(args)))
    return 0


async def take(args: argparse.Namespace) -> None:
    # Here, since they need the C part, and --help does not.
    from xenpy.drivers.console.hub import Hub
    from xenpy.drivers.console.primary import Primary
    from xenpy.drivers.console.pty_outlet import PtyOutlet
    from xenpy.drivers.console.settings import LogSettings
    from xenpy.drivers.console.socket_outlet import SocketOutlet

    name = f"console/{args.domid}/0"
    words = {"log-size": args.log_size, "log-keep": args.log_keep}
    with wrong_usage():
        settings = LogSettings.parse({key: text for key, text in words.items() if text})
    hub = Hub()
    with closing(hub):
        pty = PtyOutlet(hub)
        hub.outlets.append(pty)
        if args.socket:
            hub.outlets.append(SocketOutlet(args.socket, hub))
        if args.log:
            file = settings.open(Path(args.log), name, BoundedLog(log, name))
            hub.outlets += [file] if file is not None else []
        async with (
            Store.open(args.store) as store,
            Primary(store, args.domid, hub, pty.name) as console,
        ):
            where = {"domid": args.domid, "tty": pty.name, "socket": args.socket}
            log.info("%s: served on %s", name, pty.name)
            if args.json:
                print(json.dumps(where))
                sys.stdout.flush()
            try:
                await console.ended()
            finally:
                log.info("%s: printed %d bytes, typed %d", name, hub.printed, hub.accepted)
