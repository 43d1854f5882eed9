# SPDX-License-Identifier: MIT
"""Send all that a client sends back to it, without an event loop.

python3 vchan_blocking.py DOMID PATH
"""

from __future__ import annotations

import sys

from xenpy.drivers.vchan import blocking


def main(domid: int, path: str) -> None:
    buffer = memoryview(bytearray(1 << 16))
    with blocking.listen(domid, path) as server:
        while True:
            with server.accept() as client:
                while count := client.recv_into(buffer):
                    client.sendall(buffer[:count])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
