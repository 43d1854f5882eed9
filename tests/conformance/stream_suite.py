# SPDX-License-Identifier: MIT
"""A protocol of bytes, both halves: one suite for the fakes and for a real Xen.

A module that runs it imports every name and defines a fixture `streams`: a
`xenpy.testing.stream.Streams`.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from xenpy.byte_stream import ByteStream
from xenpy.stream_backend import StreamBackend
from xenpy.stream_protocol import StreamProtocol
from xenpy.testing.stream import Streams

ECHO = StreamProtocol("xenpy-echo", max_ring_order=2)
HALF = 8192


class Echo(StreamBackend):
    protocol = ECHO

    async def serve(self, stream: ByteStream) -> None:
        while content := await stream.read():
            await stream.write(content)


class Records(StreamBackend):
    """Answers each record with itself, reversed."""

    protocol = ECHO

    async def serve(self, stream: ByteStream) -> None:
        while (record := await stream.read_record(limit=100_000)) is not None:
            await stream.write_record(record[::-1])


class Listener(StreamBackend):
    protocol = ECHO
    heard = b""

    async def serve(self, stream: ByteStream) -> None:
        await asyncio.sleep(0.05)
        while content := await stream.read(100):
            Listener.heard += content


class Failing(StreamBackend):
    protocol = ECHO

    async def serve(self, stream: ByteStream) -> None:
        await stream.write(b"before")
        if await stream.read() == b"bug":
            raise ZeroDivisionError


def noise(count: int) -> bytes:
    return random.Random(count).randbytes(count)


@pytest.mark.parametrize("count", [1, HALF - 1, HALF, HALF + 1, 300_001])
def test_bytes_come_back(streams: Streams, count: int) -> None:
    async def main() -> None:
        async with streams(Echo) as stream:
            content = noise(count)
            back, _ = await asyncio.gather(stream.readexactly(count), stream.write(content))
            assert back == content
            assert (stream.sent, stream.received) == (count, count)

    asyncio.run(main())


def test_records_of_any_size(streams: Streams) -> None:
    async def main() -> None:
        async with streams(Records) as stream:
            for count in (0, 1, 5, HALF, 50_000):
                await stream.write_record(noise(count))
                assert await stream.read_record() == noise(count)[::-1]
            with pytest.raises(ConnectionResetError):
                await stream.write_record(bytes(100_001))
            assert await stream.read_record() is None

    asyncio.run(main())


def test_what_is_in_the_ring_at_the_end_is_read(streams: Streams) -> None:
    async def main() -> None:
        Listener.heard = b""
        async with streams(Listener) as stream:
            await stream.write(noise(HALF))
        assert Listener.heard == noise(HALF)
        with pytest.raises(ConnectionResetError):
            await stream.write(b"nobody")
        assert await stream.read() == b""

    asyncio.run(main())


@pytest.mark.parametrize("word", [b"bug", b"enough"])
def test_a_backend_that_ends_closes_its_device(streams: Streams, word: bytes) -> None:
    async def main() -> None:
        async with streams(Failing) as stream:
            await stream.write(word)
            assert await stream.readexactly(6) == b"before"
            assert await stream.read() == b""

    asyncio.run(main())


def test_whoever_writes_too_much_waits(streams: Streams) -> None:
    """In the ring, and nowhere else."""

    async def main() -> None:
        async with streams(Echo) as stream:
            writing = asyncio.create_task(stream.write(bytes(10 * HALF)))
            while stream.sent < 2 * HALF:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            # Nobody reads what comes back: two rings full, and what the echo holds.
            assert stream.sent <= 3 * HALF
            assert not writing.done()
            await stream.readexactly(10 * HALF)
            await writing

    asyncio.run(main())


def test_a_reader_that_gives_up_loses_nothing(streams: Streams) -> None:
    async def main() -> None:
        async with streams(Echo) as stream:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.read(), 0.01)
            await stream.write(b"late")
            assert await stream.readexactly(4) == b"late"

    asyncio.run(main())
