# SPDX-License-Identifier: MIT
"""vchan between threads, both halves ours: one suite for the fakes and for a real Xen.

A module that runs it imports every name and defines a fixture `arena`: a `ThreadArena`.
"""

from __future__ import annotations

import asyncio
import errno
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest

from conformance.block_front import PATIENCE
from conformance.vchan_raw import RawClient
from xenpy.drivers import vchan
from xenpy.drivers.vchan import blocking
from xenpy.drivers.vchan.channel import VchanAccess
from xenpy.drivers.vchan.nodes import published
from xenpy.errors import PeerError, XenConnectionError, XenError, XenTimeoutError
from xenpy.types import DomId
from xenpy.xenstore import Store

PATH = "data/vchan-threads"


@dataclass(frozen=True)
class ThreadHalf:
    """A domain as a program in it sees it.

    Attributes:
        store: where its xenstored is.
    """

    domid: DomId
    store: str | None
    xen: VchanAccess


@dataclass(frozen=True)
class ThreadArena:
    """A server's domain and a client's.

    Attributes:
        census: what is held, counted.
        destroy: what xenstored does when the client's domain is destroyed; only a fake one is.
    """

    server: ThreadHalf
    client: ThreadHalf
    census: Callable[[], Mapping[str, int]]
    destroy: Callable[[], None] | None = None

    def listen(self, left: int = 0, right: int = 0) -> blocking.Listener:
        half = self.server
        return blocking.listen(
            self.client.domid, PATH, left=left, right=right, store=half.store, xen=half.xen
        )

    def connect(self, timeout: float = PATIENCE) -> blocking.Vchan:
        half = self.client
        return blocking.connect(
            self.server.domid, PATH, timeout=timeout, store=half.store, xen=half.xen
        )

    @contextmanager
    def pair(
        self, left: int = 0, right: int = 0
    ) -> Iterator[tuple[blocking.Vchan, blocking.Vchan]]:
        """The server's side and the client's."""
        with self.listen(left, right) as server, ThreadPoolExecutor(1) as other:
            coming = other.submit(self.connect)
            with server.accept(PATIENCE) as here, coming.result() as there:
                yield here, there

    def check_nothing_is_held(self, before: Mapping[str, int]) -> None:
        """The kernel gives pages back when it gets round to it."""
        deadline = time.monotonic() + PATIENCE
        while (after := self.census()) != before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert after == before


def send(way: blocking.Vchan, content: bytes, seed: int) -> None:
    dice = random.Random(seed)
    place = 0
    while place < len(content):
        length = dice.choice([1, 2, 511, 4096, 65536, 300000])
        way.sendall(content[place : place + length])
        place += length


def receive(way: blocking.Vchan, length: int, seed: int) -> bytes:
    dice = random.Random(seed)
    got = bytearray()
    buffer = bytearray(100000)
    while len(got) < length:
        limit = min(dice.choice([1, 700, 4096, 65536, 300000]), length - len(got))
        if dice.random() < 0.5:
            got += way.recv(limit)
        else:
            with memoryview(buffer)[:limit] as view:
                got += view[: way.recv_into(view)]
    return bytes(got)


@pytest.mark.parametrize("sizes", [(1, 1 << 20), (1 << 11, 1 << 12), (1 << 16, 1 << 16)], ids=str)
def test_both_directions_at_once(arena: ThreadArena, sizes: tuple[int, int]) -> None:
    """A thread for each end of each direction: four that wait for two ports."""
    before = arena.census()
    contents = [random.Random(seed).randbytes(500_000) for seed in (1, 2)]
    with arena.pair(*sizes) as ways, ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(send, ways[n], contents[n], n) for n in (0, 1)]
        got = [pool.submit(receive, ways[1 - n], len(contents[n]), n) for n in (0, 1)]
        for n in (0, 1):
            sent[n].result(4 * PATIENCE)
            assert got[n].result(4 * PATIENCE) == contents[n]
    arena.check_nothing_is_held(before)


def test_a_call_that_takes_too_long(arena: ThreadArena) -> None:
    """It says so, and what comes later is there for the next."""
    with arena.pair() as (here, there):
        here.timeout = 0.05
        with pytest.raises(XenTimeoutError, match=r"seconds=0\.05"):
            here.recv(1)
        with pytest.raises(XenTimeoutError):
            here.sendall(bytes(1 << 16))
        assert there.recv(1 << 16) == bytes(2048)
        there.sendall(b"late")
        here.timeout = PATIENCE
        assert here.recv(10) == b"late"
        assert here.recv(0) == b""
        assert here.recv_into(bytearray()) == 0


@pytest.mark.parametrize("call", ["sendall", "flush"])
def test_a_peer_that_reads_bit_by_bit_does_not_make_the_time_longer(
    arena: ThreadArena, call: str
) -> None:
    done = threading.Event()

    def sip(way: blocking.Vchan) -> None:
        while not done.wait(0.05):
            way.recv(1)

    with arena.pair(2048, 2048) as (here, there), ThreadPoolExecutor(1) as pool:
        here.sendall(bytes(1024))
        sipping = pool.submit(sip, there)
        try:
            here.timeout = 0.5
            began = time.monotonic()
            with pytest.raises(XenTimeoutError):
                here.sendall(bytes(20000)) if call == "sendall" else here.flush()
            assert time.monotonic() - began < 2.5
        finally:
            done.set()
            sipping.result(PATIENCE)


def test_a_signal_is_heard_while_a_quick_peer_reads(arena: ThreadArena) -> None:
    """A call that has something to do all the time lets Python look round even so."""
    content = bytes(1 << 30)  # nothing is there until it is read, and then it is a page of zeros
    heard = threading.Event()
    with arena.pair(65536, 65536) as (here, there), ThreadPoolExecutor(1) as pool:

        def drink() -> None:
            buffer = bytearray(1000)
            while not heard.is_set() and there.recv_into(buffer):
                pass
            there.close()

        drinking = pool.submit(drink)
        before = signal.signal(signal.SIGUSR2, lambda *_: heard.set())
        main = threading.get_ident()
        timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGUSR2))
        timer.start()
        try:
            with pytest.raises(XenConnectionError, match="the other side is gone"):
                here.sendall(content)
        finally:
            timer.join()
            signal.signal(signal.SIGUSR2, before)
            drinking.result(PATIENCE)


def test_whoever_ends_second_waits_as_well(arena: ThreadArena) -> None:
    with arena.pair() as (here, _):
        here.end()
        with here._receiving:
            second = threading.Thread(target=here.end)
            second.start()
            second.join(0.1)
            assert second.is_alive()
        second.join(PATIENCE)
        assert not second.is_alive()


def test_what_was_sent_before_a_close_is_read(arena: ThreadArena) -> None:
    with arena.pair(4096, 4096) as (here, there):
        there.sendall(b"last words")
        there.close()
        there.close()
        assert here.recv(4) == b"last"
        assert here.recv(100) == b" words"
        assert here.recv(100) == b""
        assert here.recv_into(bytearray(9)) == 0
        with pytest.raises(XenConnectionError, match="the other side is gone") as raised:
            here.sendall(b"x")
        assert raised.value.errno == errno.ECONNRESET
        here.flush()
        for call in (lambda: there.recv(1), lambda: there.sendall(b"x"), there.flush):
            with pytest.raises(XenConnectionError, match="it is closed"):
                call()


def test_flush_waits_for_the_reader(arena: ThreadArena) -> None:
    with arena.pair() as (here, there), ThreadPoolExecutor(1) as pool:
        here.sendall(b"12345")
        flushing = pool.submit(here.flush)
        assert there.recv(3) == b"123"
        assert not flushing.done()
        assert there.recv(3) == b"45"
        flushing.result(PATIENCE)
        here.sendall(b"lost")
        flushing = pool.submit(here.flush)
        there.close()
        with pytest.raises(XenConnectionError, match="the other side is gone"):
            flushing.result(PATIENCE)


def test_a_close_ends_what_other_threads_wait_for(arena: ThreadArena) -> None:
    before = arena.census()
    with arena.pair() as (here, _), ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(here.recv, 1), pool.submit(here.sendall, bytes(5000))]
        time.sleep(0.1)
        began = time.monotonic()
        here.close()
        assert time.monotonic() - began < 5.0
        for call in waiting:
            with pytest.raises(XenConnectionError, match="it is closed"):
                call.result(PATIENCE)
    arena.check_nothing_is_held(before)


def test_a_close_at_any_moment(arena: ThreadArena) -> None:
    """Two threads are about to wait, and there is one bell."""
    dice = random.Random(5)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            with arena.pair() as (here, _):
                calls = [pool.submit(here.recv, 1), pool.submit(here.sendall, bytes(5000))]
                time.sleep(dice.random() / 500)
                here.close()
                for call in calls:
                    assert isinstance(call.exception(PATIENCE), XenConnectionError)


def test_one_client_after_the_other(arena: ThreadArena) -> None:
    before = arena.census()
    with arena.listen() as server, ThreadPoolExecutor(1) as pool:
        with pytest.raises(XenTimeoutError):
            server.accept(0.05)
        for number in (b"1", b"2"):
            coming = pool.submit(arena.connect)
            with server.accept(PATIENCE) as here:
                there = coming.result(PATIENCE)
                with pytest.raises(XenError, match="not closed") as raised:
                    server.accept()
                assert raised.value.errno == errno.EBUSY
                there.sendall(number)
                assert here.recv(9) == number
                there.close()
    with pytest.raises(XenTimeoutError):
        arena.connect(0.1)
    arena.check_nothing_is_held(before)


def test_an_end_in_an_event_loop(arena: ThreadArena) -> None:
    """The other way to use vchan is at the other end."""

    async def echo() -> None:
        async with Store.open(arena.client.store) as store:
            reader, writer = await vchan.open_connection(
                arena.server.domid, PATH, store=store, xen=arena.client.xen
            )
            while content := await reader.read(4096):
                await writer.send(content)
            writer.close()
            await writer.wait_closed()

    content = random.Random(3).randbytes(200_000)
    with arena.listen(4096, 1024) as server, ThreadPoolExecutor(2) as pool:
        echoing = pool.submit(asyncio.run, echo())
        with server.accept(PATIENCE) as here:
            sending = pool.submit(here.sendall, content)
            assert receive(here, len(content), 4) == content
            sending.result(PATIENCE)
        echoing.result(PATIENCE)


@contextmanager
def scribbled(arena: ThreadArena) -> Iterator[tuple[blocking.Vchan, RawClient]]:
    """A server's side, and a client that keeps to nothing."""
    with arena.listen() as server:
        control = server._control
        keys = control.call(control.store.wait(lambda tx: published(tx, server.path)))
        with RawClient(cast("Any", arena), keys.ring_ref, keys.port) as client:
            client.set(cli_live=1)
            client.notify()
            with server.accept(PATIENCE) as here:
                yield here, client


@pytest.mark.parametrize(
    ("field", "value", "call"),
    [
        ("left_prod", 5000, "recv"), ("right_cons", 77, "sendall"), ("cli_live", 7, "recv"),
        ("cli_live", 2, "sendall"), ("right_cons", 77, "flush"),
    ],
)  # fmt: skip
def test_a_client_that_keeps_no_rules(
    arena: ThreadArena, field: str, value: int, call: str
) -> None:
    before = arena.census()
    with scribbled(arena) as (here, client):
        client.set(**{field: value})
        here.timeout = PATIENCE
        words = {"recv": [1], "sendall": [bytes(9999)], "flush": []}[call]
        with pytest.raises(PeerError):
            getattr(here, call)(*words)
    arena.check_nothing_is_held(before)


def test_a_client_that_notifies_without_end(arena: ThreadArena) -> None:
    """It is heard 20 times a second."""
    with scribbled(arena) as (here, client):
        over = threading.Event()

        def storm() -> None:
            while not over.is_set():
                client.notify()

        with ThreadPoolExecutor(1) as pool:
            storming = pool.submit(storm)
            here.timeout = 1.0
            try:
                with pytest.raises(XenTimeoutError):
                    here.recv(1)
            finally:
                over.set()
            storming.result(PATIENCE)
        assert here._state.fired < 100
        # And what it has to say in the end is heard.
        client.put(1024, b"x")
        client.set(left_prod=1)
        client.notify()
        here.timeout = PATIENCE
        assert here.recv(9) == b"x"
