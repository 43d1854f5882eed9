# SPDX-License-Identifier: MIT
"""The sha256 of a disk, read by a blkfront in Python.

read_disk.py /local/domain/3/device/vbd/51728
"""

import asyncio
import sys
from hashlib import sha256

from xenpy.drivers.block.front import BlockDevice
from xenpy.xenstore import Store

STEP = 1 << 20


async def main(path: str) -> None:
    digest = sha256()
    async with Store.open() as store, BlockDevice(store, path) as disk:
        for offset in range(0, disk.size, STEP):
            digest.update(await disk.pread(min(STEP, disk.size - offset), offset))
    print(digest.hexdigest())


asyncio.run(main(sys.argv[1]))
