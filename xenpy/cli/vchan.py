# SPDX-License-Identifier: MIT
"""`xenpy vchan`: standard input and output, over a vchan, to another domain."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import signal
import sys
from collections.abc import Coroutine
from typing import Final

from xenpy.cli.common import (
    Verbs,
    add_common_options,
    domid,
    seconds,
    size,
    wrong_usage,
)
from xenpy.cli.vchan_pump import move
from xenpy.errors import XenTimeoutError
from xenpy.xenstore import Store

log = logging.getLogger(__name__)

FOREVER: Final = "forever"
EXIT_TERMINATED: Final = 128 + signal.SIGTERM

DESCRIPTION = """\
Connect standard input and output with another domain's, by a vchan: two rings in shared
memory, which libxenvchan speaks as well.  One side listens and one connects; DOMID is the
other one's domain.  PATH is where they meet in XenStore: if it does not begin with / it lies
below the listener's home, /local/domain/DOMID, for both of them.
"""
EPILOG = """\
examples:
  xenpy vchan listen 3 data/log > log         in domain 0, for domain 3
  xenpy vchan connect 0 data/log < messages   in domain 3
  tar c /srv | xenpy vchan connect 0 data/backup
  vchan-socket-proxy 0 /local/domain/0/data/log -    what libxenvchan has for the same
"""
LISTEN = """\
Wait for a client in domain DOMID, and for the end of either side.  Status 0: the client closed,
or standard input ended and the client has read all of it.
"""
LISTEN_EPILOG = """\
examples:
  xenpy vchan listen 3 data/log > log
  xenpy vchan listen 3 data/files --right 1M --timeout 60 < archive.tar

Needs root, and /dev/xen/gntalloc (modprobe xen-gntalloc).
"""
CONNECT = """\
Connect to the server in domain DOMID, once there is one, and wait for the end of either side.
Status 0: the server closed, or standard input ended and the server has read all of it.
"""
CONNECT_EPILOG = """\
examples:
  xenpy vchan connect 0 data/log < messages
  echo hello | xenpy vchan connect 0 data/echo --linger 1
  xenpy vchan connect 0 data/news --linger forever < /dev/null
"""


def add_parser(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "vchan",
        help="standard input and output to another domain",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    listening = inner.add_parser(
        "listen",
        help="wait for a client",
        description=LISTEN,
        epilog=LISTEN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, what in (("left", "client to server"), ("right", "server to client")):
        listening.add_argument(
            f"--{name}", metavar="BYTES", type=size, default=64 << 10,
            help=f"least size of the ring from {what}, 1M at most (64K)",
        )  # fmt: skip
    _add_options(listening, "forever")
    listening.set_defaults(run=run_listen)
    connecting = inner.add_parser(
        "connect",
        help="connect to a server",
        description=CONNECT,
        epilog=CONNECT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_options(connecting, "30")
    connecting.set_defaults(run=run_connect)


def _add_options(parser: argparse.ArgumentParser, timeout: str) -> None:
    parser.add_argument("domid", metavar="DOMID", type=domid, help="the other side's domain")
    parser.add_argument("path", metavar="PATH", help="where in XenStore, such as data/log")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=patience, default=patience(timeout),
        help=f"how long to wait for the other side ({timeout})",
    )  # fmt: skip
    parser.add_argument(
        "--linger", metavar="SECONDS", type=patience, default=0.0,
        help="how long to go on receiving once standard input has ended (0)",
    )  # fmt: skip
    add_common_options(parser)


def patience(text: str) -> float | None:
    """An argument that is a number of seconds, 0 included, or `forever`."""
    if text == FOREVER:
        return None
    return 0.0 if text == "0" else seconds(text)


def run_listen(args: argparse.Namespace) -> int:
    return _until_told(_listen(args))


def run_connect(args: argparse.Namespace) -> int:
    return _until_told(_connect(args))


async def _listen(args: argparse.Namespace) -> None:
    # Here, so that the command line is there without the C part, and can say so.
    from xenpy.drivers import vchan

    async with Store.open(args.store) as store:
        with wrong_usage():
            server = vchan.listen(
                args.domid, args.path, left=args.left, right=args.right, store=store
            )
        async with server:
            log.info("listening at %s for domain %d", server.path, args.domid)
            try:
                async with asyncio.timeout(args.timeout):
                    reader, writer = await server.accept()
            except TimeoutError:
                raise XenTimeoutError(
                    errno.ETIMEDOUT, "listen", "no client has come", domid=args.domid,
                    path=server.path, seconds=args.timeout,
                ) from None  # fmt: skip
            log.info("domain %d has connected", args.domid)
            await move(reader, writer, sys.stdin.fileno(), sys.stdout.fileno(), args.linger)


async def _connect(args: argparse.Namespace) -> None:
    from xenpy.drivers import vchan

    async with Store.open(args.store) as store:
        reader, writer = await vchan.open_connection(
            args.domid, args.path, timeout=args.timeout, store=store
        )
        log.info("connected to %s", writer.get_extra_info("path"))
        try:
            await move(reader, writer, sys.stdin.fileno(), sys.stdout.fileno(), args.linger)
        finally:
            writer.abort()
            await writer.wait_closed()


def _until_told(work: Coroutine[object, object, None]) -> int:
    """Run it; SIGTERM ends it as SIGINT does, with everything given back.  Returns the status."""

    async def main() -> int:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            return EXIT_TERMINATED
        return 0

    return asyncio.run(main())
