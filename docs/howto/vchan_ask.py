# SPDX-License-Identifier: MIT
"""Ask the server of vchan_shout.py.

python3 vchan_ask.py DOMID PATH LINE
"""

from __future__ import annotations

import asyncio
import sys

from xenpy.drivers import vchan


async def ask(reader: vchan.VchanReader, writer: vchan.VchanWriter, line: str) -> str:
    writer.write(line.encode() + b"\n")
    await writer.drain()
    return (await reader.readline()).decode().rstrip("\n")


async def main(domid: int, path: str, line: str) -> None:
    reader, writer = await vchan.open_connection(domid, path, timeout=10)
    try:
        print(await ask(reader, writer, line))
    finally:
        writer.close()
        await writer.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
