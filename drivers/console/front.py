# SPDX-License-Identifier: MIT
"""The frontend of a console: what hvc_xen is to a guest, for a program.

async with connect(devid=1) as console:
    await console.write(b"hello\n")
    print(await console.read())
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, ExitStack
from typing import Final

from xenpy.backend import Keys
from xenpy.byte_stream import ByteStream
from xenpy.drivers.console.protocol import ConsoleRing
from xenpy.frontend import FrontendAccess
from xenpy.gnttab import SharedPages
from xenpy.ports import Ports
from xenpy.stream_frontend import ByteFrontend, connected
from xenpy.types import DomId, Port
from xenpy.xenstore import Store

__all__ = ["ConsoleFrontend", "connect"]

KIND: Final = "console"


class ConsoleFrontend(ByteFrontend):
    """Over the page of a console."""

    transport_keys = re.compile("ring-ref|port")
    pages: SharedPages
    ports: Ports
    port: Port

    async def publish(self, backend: Mapping[str, str]) -> Keys:
        peer, xen = self.context.peer, self.context.xen
        with ExitStack() as held:
            share = held.enter_context(xen.open_share())
            self.pages = held.enter_context(share.share(peer, 1))
            self.ports = Ports(xen.open_evtchn())
            held.callback(self.ports.close)
            rings = ConsoleRing.frontend(self.pages)
            stream = ByteStream(*rings, lambda: self.ports.notify(self.port))
            self.port = self.ports.listen(peer, stream.service)
            self.keep(stream, held)
        return {"ring-ref": int(self.pages.refs[0]), "port": int(self.port)}


def connect(
    devid: int = 1,
    *,
    kind: str = KIND,
    domid: DomId | None = None,
    store: Store | None = None,
    xen: FrontendAccess | None = None,
    timeout: float = 10.0,
) -> AbstractAsyncContextManager[ByteStream]:
    """Connect to a console of this domain that the kernel does not have.

    A backend that starts over ends the stream.  Raises as `FrontendLife`.

    Args:
        devid: which, 1 to 9.
        kind: the directory below `device/`.  Linux takes all that are in `console` for itself.
        domid: whose; None: ours.
    """
    return connected(ConsoleFrontend, kind, devid, domid, store, xen, timeout)
