# SPDX-License-Identifier: MIT
"""Log in to a guest on its first console, and ask who we are."""

import asyncio
import sys

from xenpy.drivers.console.session import primary


async def main(domid: int) -> None:
    async with primary(domid) as console:
        console.type("exec login\n")
        await console.until("login: ")
        console.type("root\n")
        await console.until("# ")
        console.type("id -un; echo d''one\n")
        await console.until("d''one")
        print((await console.until("done")).decode())


asyncio.run(main(int(sys.argv[1])))
