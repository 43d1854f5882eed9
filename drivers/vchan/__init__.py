# SPDX-License-Identifier: MIT
"""vchan, byte streams between two domains (xen/include/public/io/libxenvchan.h).

async with vchan.listen(3, "data/echo") as server:            # in domain 0
    async for reader, writer in server:
        ...
reader, writer = await vchan.open_connection(0, "data/echo")  # in domain 3
"""

from xenpy.drivers.vchan.client import open_connection
from xenpy.drivers.vchan.server import Server, listen
from xenpy.drivers.vchan.streams import VchanReader, VchanWriter

__all__ = ["Server", "VchanReader", "VchanWriter", "listen", "open_connection"]
