# SPDX-License-Identifier: MIT
"""A device that says everything again, louder.  Serve it with: xenpy run shout.py"""

from xenpy import StreamBackend, StreamProtocol
from xenpy.byte_stream import ByteStream


class Shout(StreamBackend):
    protocol = StreamProtocol("shout")

    async def serve(self, stream: ByteStream) -> None:
        while content := await stream.read():
            await stream.write(content.upper())
