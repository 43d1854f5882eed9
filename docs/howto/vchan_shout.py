# SPDX-License-Identifier: MIT
"""Answer each line in capitals, to clients that come one after the other.

python3 vchan_shout.py DOMID PATH
"""

from __future__ import annotations

import asyncio
import sys

from xenpy.drivers import vchan
from xenpy.errors import PeerError


async def shout(server: vchan.Server) -> None:
    async for reader, writer in server:
        try:
            async for line in reader:
                writer.write(line.upper())
                await writer.drain()
        except (ConnectionError, PeerError, ValueError) as error:
            print(f"a client of domain {server.domid}: {error}", file=sys.stderr)
        writer.close()


async def main(domid: int, path: str) -> None:
    async with vchan.listen(domid, path) as server:
        await shout(server)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
