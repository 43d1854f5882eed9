# SPDX-License-Identifier: MIT
"""A process that holds a page and a port of dom0 until it is killed.

    python3 -m conformance.doomed map|share OFFSET REMOTE_PORT [REF]

Prints the grant's reference once everything is held.
"""

from __future__ import annotations

import sys

from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantShare, GrantTable
from xenpy.types import DOM0, GrantRef, Port


def main(verb: str, offset: int, remote_port: int, ref: int = 0) -> None:
    with EventChannels() as channels, GrantTable() as table, GrantShare() as share:
        port = channels.bind_interdomain(DOM0, Port(remote_port))
        if verb == "map":
            table.map(DOM0, [GrantRef(ref)], notify_offset=offset, notify_port=port)
        else:
            pages = share.share(DOM0, 1, notify_offset=offset, notify_port=port)
            pages.view(offset, 1)[0] = 1
            ref = pages.refs[0]
        print(ref, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
