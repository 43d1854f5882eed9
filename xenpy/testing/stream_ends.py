# SPDX-License-Identifier: MIT
"""The two ends of a stream, to be measured: a program for each.

    python3 -m xenpy.testing.stream_ends blocking sink DOMID PATH COUNT RING      in one domain
    python3 -m xenpy.testing.stream_ends blocking source DOMID PATH COUNT RING    in the other
    python3 -m xenpy.testing.stream_ends tcp sink - PORT COUNT 0
    python3 -m xenpy.testing.stream_ends tcp source ADDRESS PORT COUNT 0

There is `asyncio` too, in place of `blocking`; and `requests`, `bytes` and `xenstore`, see
`xenpy.testing.device_ends`.  The sink, or the echo, is the server, and its rings have RING bytes.

`sink` reads COUNT bytes and prints how many a second.  Of `echo` and `ping`, in the same places,
`ping` sends a byte COUNT times, waits for its echo, and prints how many round trips a second.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from xenpy.drivers import vchan
from xenpy.drivers.vchan import blocking
from xenpy.testing.device_ends import ROLES

__all__ = ["main"]

PIECE: Final = 64 << 10
PATIENCE: Final = 60.0


async def asyncio_end(role: str, domid: int, path: str, count: int, ring: int) -> float | None:
    """One end of a vchan, in an event loop; sink and echo are its server."""
    if role in ("sink", "echo"):
        async with vchan.listen(domid, path, left=ring, right=ring) as server:
            reader, writer = await server.accept()
            if role == "sink":
                return await _sink(reader, count)
            await _echo(reader, writer, count)
            return None
    reader, writer = await vchan.open_connection(domid, path, timeout=PATIENCE)
    if role == "source":
        piece = bytes(PIECE)
        for _ in range(0, count, PIECE):
            await writer.send(piece)
        await writer.flush()
        rate = None
    else:
        rate = await _ping(reader, writer, count)
    writer.close()
    await writer.wait_closed()
    return rate


async def _sink(reader: vchan.VchanReader, count: int) -> float:
    buffer = memoryview(bytearray(PIECE))
    first = done = await reader.readinto(buffer)
    began = time.perf_counter()
    while done < count:
        done += _some(await reader.readinto(buffer))
    return (done - first) / (time.perf_counter() - began)


async def _echo(reader: vchan.VchanReader, writer: vchan.VchanWriter, count: int) -> None:
    for _ in range(count):
        writer.write(await reader.readexactly(1))
        await writer.drain()
    await writer.flush()


async def _ping(reader: vchan.VchanReader, writer: vchan.VchanWriter, count: int) -> float:
    began = 0.0
    for number in range(count):
        writer.write(b"x")
        await writer.drain()
        await reader.readexactly(1)
        if number == 0:
            began = time.perf_counter()
    return (count - 1) / (time.perf_counter() - began)


async def device_end(way: str, role: str, domid: int, path: str, count: int) -> float | None:
    """One end of a device of its own, or of XenStore; sink and echo are in domain 0."""
    return await ROLES[way][role](domid, path, count)


def blocking_end(role: str, domid: int, path: str, count: int, ring: int) -> float | None:
    """One end of a vchan, by calls that wait; sink and echo are its server."""
    if role in ("sink", "echo"):
        with (
            blocking.listen(domid, path, left=ring, right=ring) as server,
            server.accept() as ours,
        ):
            if role == "echo":
                for _ in range(count):
                    ours.sendall(ours.recv(1))
                ours.flush()
                return None
            return _sunk(ours.recv_into, count)
    with blocking.connect(domid, path, timeout=PATIENCE) as ours:
        if role == "ping":
            return _pinged(lambda: ours.sendall(b"x"), lambda: ours.recv(1), count)
        piece = bytes(PIECE)
        for _ in range(0, count, PIECE):
            ours.sendall(piece)
        ours.flush()
    return None


def tcp_end(role: str, address: str, port: int, count: int) -> float | None:
    """One end of a TCP connection; sink and echo listen."""
    if role in ("sink", "echo"):
        with socket.create_server(("", port)) as server:
            connection, _ = server.accept()
    else:
        connection = _connected(address, port)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _tcp_roles[role](connection, count)


def _connected(address: str, port: int) -> socket.socket:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((address, port), timeout=PATIENCE)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _tcp_sink(connection: socket.socket, count: int) -> float:
    return _sunk(connection.recv_into, count)


def _sunk(recv_into: Callable[[memoryview], int], count: int) -> float:
    buffer = memoryview(bytearray(PIECE))
    first = done = recv_into(buffer)
    began = time.perf_counter()
    while done < count:
        done += _some(recv_into(buffer))
    return (done - first) / (time.perf_counter() - began)


def _tcp_source(connection: socket.socket, count: int) -> None:
    piece = bytes(PIECE)
    for _ in range(0, count, PIECE):
        connection.sendall(piece)


def _tcp_echo(connection: socket.socket, count: int) -> None:
    for _ in range(count):
        connection.sendall(connection.recv(1))


def _tcp_ping(connection: socket.socket, count: int) -> float:
    return _pinged(lambda: connection.sendall(b"x"), lambda: connection.recv(1), count)


def _pinged(send: Callable[[], None], receive: Callable[[], bytes], count: int) -> float:
    began = 0.0
    for number in range(count):
        send()
        _some(len(receive()))
        if number == 0:
            began = time.perf_counter()
    return (count - 1) / (time.perf_counter() - began)


_tcp_roles: Final[dict[str, Callable[[socket.socket, int], float | None]]] = {
    "sink": _tcp_sink,
    "source": _tcp_source,
    "echo": _tcp_echo,
    "ping": _tcp_ping,
}


def _some(count: int) -> int:
    if count == 0:
        raise ConnectionError("the other end has gone")
    return count


def main(arguments: Sequence[str]) -> None:
    """Be one end; see the module."""
    way, role, peer, place, count, ring = arguments
    if way == "asyncio":
        rate = asyncio.run(asyncio_end(role, int(peer), place, int(count), int(ring)))
    elif way == "blocking":
        rate = blocking_end(role, int(peer), place, int(count), int(ring))
    elif way in ROLES:
        rate = asyncio.run(device_end(way, role, int(peer), place, int(count)))
    else:
        rate = tcp_end(role, peer, int(place), int(count))
    if rate is not None:
        print(round(rate))


if __name__ == "__main__":
    main(sys.argv[1:])
