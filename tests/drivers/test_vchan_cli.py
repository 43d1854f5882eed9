# SPDX-License-Identifier: MIT
"""`xenpy vchan` over the fakes: what it moves, its exit statuses, and what is refused."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from conformance.block_front import PATIENCE, Daemon
from conformance.fake_framework import FakeFramework, env
from xenpy.cli.main import EXIT_FAILED, EXIT_USAGE, main
from xenpy.drivers import vchan
from xenpy.drivers.vchan import VchanReader, VchanWriter, client, server
from xenpy.xenstore import Store

__all__ = ["env"]

PATH = "data/cli"
CONTENT = random.Random(1).randbytes(300_000)
Streams = tuple[VchanReader, VchanWriter]


class Fd:
    """As much of sys.stdin and sys.stdout as is used."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._fd)


class Peer:
    """The other side, in domain 1, in a thread of its own."""

    def __init__(self, env: FakeFramework) -> None:
        self.daemon = Daemon()
        self._xen = env.xen.domain(env.front_domid)
        self._domid = env.front_domid
        self._store = self.daemon.run(self._open(env))

    async def _open(self, env: FakeFramework) -> Store:
        # Domain 0's, so that it may write where domain 1 listens.
        return await Store.open(env.store_path(), timeout=PATIENCE).__aenter__()

    def connect(self, talk: Callable[[VchanReader, VchanWriter], object]) -> Peer:
        """Connect to the command line, which listens."""

        async def run() -> None:
            reader, writer = await vchan.open_connection(
                0, PATH, store=self._store, xen=self._xen, timeout=PATIENCE
            )
            await talk(reader, writer)  # type: ignore[misc]
            writer.close()
            await writer.wait_closed()

        return self._begin(run())

    def listen(self, talk: Callable[[VchanReader, VchanWriter], object]) -> Peer:
        async def run() -> None:
            where = f"/local/domain/{self._domid}/{PATH}"
            async with vchan.listen(0, where, store=self._store, xen=self._xen) as serving:
                reader, writer = await serving.accept()
                await talk(reader, writer)  # type: ignore[misc]
                writer.close()

        return self._begin(run())

    def _begin(self, work: object) -> Peer:
        async def begin() -> asyncio.Task[None]:
            return asyncio.create_task(work)  # type: ignore[arg-type]

        self._task = self.daemon.run(begin())
        return self

    def end(self) -> None:
        async def end() -> None:
            await self._task

        self.daemon.run(end())

    def close(self) -> None:
        self.daemon.run(self._store.close())
        self.daemon.close()


@pytest.fixture
def peer(env: FakeFramework) -> Iterator[Peer]:
    before = env.census()

    def left() -> list[str]:
        # Fewer may be left: xenstored's end of the test before closes when it gets to it.
        return [name for name, count in env.census().items() if count > before[name]]

    peer = Peer(env)
    yield peer
    peer.close()
    deadline = time.monotonic() + PATIENCE
    while left() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left(), "something is still held"


@pytest.fixture
def xenpy(env: FakeFramework, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Xenpy:
    for module in (server, client):
        monkeypatch.setattr(module, "NativeVchan", lambda: env.xen.domain(env.back_domid))
    return Xenpy(env, monkeypatch, tmp_path)


class Xenpy:
    """`main` with descriptors for its input and output."""

    def __init__(self, env: FakeFramework, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self._env = env
        self._monkeypatch = monkeypatch
        self._out = tmp_path / "out"
        self._in = tmp_path / "in"

    def __call__(self, *words: str, source: bytes | int = b"", sink: int | None = None) -> int:
        if isinstance(source, bytes):
            self._in.write_bytes(source)
            source = os.open(self._in, os.O_RDONLY)
        if sink is None:
            sink = os.open(self._out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        streams = Fd(source), Fd(sink)
        self._monkeypatch.setattr("sys.stdin", streams[0])
        self._monkeypatch.setattr("sys.stdout", streams[1])
        try:
            return main(["vchan", *words, "--store", self._env.store_path() or ""])
        finally:
            self._monkeypatch.undo()
            for stream in streams:
                stream.close()

    @property
    def said(self) -> bytes:
        return self._out.read_bytes()


LISTEN = ("listen", "1", PATH, "-q")
CONNECT = ("connect", "1", PATH, "-q")


async def swallow(reader: VchanReader, _: VchanWriter) -> None:
    assert await reader.read() == CONTENT


async def speak(_: VchanReader, writer: VchanWriter) -> None:
    await writer.send(CONTENT)


async def echo(reader: VchanReader, writer: VchanWriter) -> None:
    while content := await reader.read(70000):
        await writer.send(content)


def test_a_file_goes_to_a_server_and_all_of_it_is_read(xenpy: Xenpy, peer: Peer) -> None:
    peer.listen(swallow)
    assert xenpy(*CONNECT, source=CONTENT) == 0
    assert xenpy.said == b""
    peer.end()


def test_a_file_goes_to_a_client(xenpy: Xenpy, peer: Peer) -> None:
    peer.connect(swallow)
    assert xenpy(*LISTEN, "--left", "1K", "--right", "1K", source=CONTENT) == 0
    peer.end()


@pytest.mark.parametrize("verb", [LISTEN, CONNECT])
def test_what_the_other_side_says_goes_to_stdout_until_it_closes(
    xenpy: Xenpy, peer: Peer, verb: tuple[str, ...]
) -> None:
    (peer.connect if verb is LISTEN else peer.listen)(speak)
    source, held_open = os.pipe()
    assert xenpy(*verb, source=source) == 0
    os.close(held_open)
    assert xenpy.said == CONTENT
    peer.end()


def test_both_directions_by_pipes(xenpy: Xenpy, peer: Peer) -> None:
    peer.listen(echo)
    source, feed = os.pipe()
    drain, sink = os.pipe()
    got = bytearray()

    def feeding() -> None:
        with os.fdopen(feed, "wb") as pipe:
            pipe.write(CONTENT)
            while len(got) < len(CONTENT):
                time.sleep(0.001)

    def draining() -> None:
        while content := os.read(drain, 5000):
            got.extend(content)
        os.close(drain)

    threads = [threading.Thread(target=work) for work in (feeding, draining)]
    for thread in threads:
        thread.start()
    assert xenpy(*CONNECT, source=source, sink=sink) == 0
    for thread in threads:
        thread.join()
    assert got == CONTENT
    peer.end()


def test_what_comes_while_it_lingers_is_taken(xenpy: Xenpy, peer: Peer) -> None:
    async def answer(reader: VchanReader, writer: VchanWriter) -> None:
        assert await reader.readline() == b"question\n"
        await asyncio.sleep(0.1)
        writer.write(b"answer")

    peer.listen(answer)
    assert xenpy(*CONNECT, "--linger", "forever", source=b"question\n") == 0
    assert xenpy.said == b"answer"
    peer.end()


def test_what_has_come_before_the_end_is_not_lost(xenpy: Xenpy, peer: Peer) -> None:
    async def answer(reader: VchanReader, writer: VchanWriter) -> None:
        writer.write(b"first of all")
        await writer.drain()
        assert await reader.read() == b"bye"

    peer.listen(answer)
    assert xenpy(*CONNECT, source=b"bye") == 0
    assert xenpy.said == b"first of all"
    peer.end()


def test_one_who_leaves_without_reading_is_a_failure(
    xenpy: Xenpy, peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    async def leave(reader: VchanReader, _: VchanWriter) -> None:
        await reader.read(1)

    peer.listen(leave)
    assert xenpy(*CONNECT, source=CONTENT) == EXIT_FAILED
    assert "the other side is gone" in capsys.readouterr().err
    peer.end()


@pytest.mark.parametrize(
    ("verb", "why"), [(LISTEN, "no client has come"), (CONNECT, "no server has published it")]
)
def test_nobody_comes(
    xenpy: Xenpy, verb: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert xenpy(*verb, "--timeout", "0.1") == EXIT_FAILED
    said = capsys.readouterr().err
    assert said.startswith("xenpy: [ETIMEDOUT]")
    assert why in said


def test_an_output_that_nobody_reads_is_a_failure(
    xenpy: Xenpy, peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    async def speak_on(_: VchanReader, writer: VchanWriter) -> None:
        with suppress(ConnectionError):
            while True:
                await writer.send(bytes(4096))

    peer.listen(speak_on)
    source, held_open = os.pipe()
    drain, sink = os.pipe()
    os.close(drain)
    assert xenpy(*CONNECT, source=source, sink=sink) == EXIT_FAILED
    os.close(held_open)
    assert "Broken pipe" in capsys.readouterr().err
    peer.end()


@pytest.mark.parametrize("connected", [True, False])
def test_sigterm_takes_the_keys_away(
    xenpy: Xenpy, peer: Peer, env: FakeFramework, connected: bool
) -> None:
    heard = threading.Event()

    async def stay(reader: VchanReader, _: VchanWriter) -> None:
        heard.set()
        assert await reader.read() == b""

    def kill() -> None:
        if connected:
            heard.wait()
        else:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    if connected:
        peer.connect(stay)
    source, held_open = os.pipe()
    killer = threading.Thread(target=kill)
    killer.start()
    assert xenpy(*LISTEN, source=source) == 128 + signal.SIGTERM
    killer.join()
    os.close(held_open)
    if connected:
        peer.end()

    async def left() -> bool:
        async with Store.open(env.store_path()) as store:
            return await store.exists(f"/local/domain/0/{PATH}")

    assert not asyncio.run(left())


def test_a_ring_too_large_is_wrong_usage(xenpy: Xenpy, capsys: pytest.CaptureFixture[str]) -> None:
    assert xenpy(*LISTEN, "--left", "2M") == EXIT_USAGE
    assert "1048576 is the most" in capsys.readouterr().err
