# SPDX-License-Identifier: MIT
"""Ports in an event loop: who fires is served, who fires for nothing is heard less and less."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

import pytest

from conformance.block_front import PATIENCE
from xenpy.evtchn import EventChannels
from xenpy.ports import Ports
from xenpy.testing.fake_xen import FakeXen
from xenpy.types import DOM0, DomId, Port

US = DomId(1)


@pytest.fixture
def xen() -> Iterator[FakeXen]:
    before = len(os.listdir("/proc/self/fd"))
    xen = FakeXen()
    yield xen
    assert set(xen.census().values()) == {0}
    xen.close()
    assert len(os.listdir("/proc/self/fd")) == before


class Peer:
    """The other end of a port."""

    def __init__(self, xen: FakeXen, port: Port) -> None:
        self.channels: EventChannels = xen.domain(DOM0).open_evtchn()
        self.port = self.channels.bind_interdomain(US, port)

    def notify(self) -> None:
        self.channels.notify(self.port)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


def test_each_port_has_its_callback(xen: FakeXen) -> None:
    async def body() -> None:
        ports = Ports(xen.domain(US).open_evtchn())
        heard: list[int] = []
        bound = [ports.listen(DOM0, lambda n=n: heard.append(n) or 1) for n in range(3)]
        peers = [Peer(xen, port) for port in bound]
        for number in (2, 0, 2, 1):
            heard.clear()
            peers[number].notify()
            await until(lambda: heard != [])
            assert heard == [number]
        # The other way.
        ports.notify(bound[1])
        assert peers[1].channels.pending() == [peers[1].port]
        assert ports.wakes == 4
        ports.close()
        ports.close()
        for peer in peers:
            peer.channels.close()

    asyncio.run(body())


def test_a_storm_is_heard_a_few_times_a_second(xen: FakeXen) -> None:
    async def body() -> None:
        ports = Ports(xen.domain(US).open_evtchn())
        work: list[int] = []
        peer = Peer(xen, ports.listen(DOM0, lambda: work.pop() if work else 0))
        loop = asyncio.get_running_loop()
        end = loop.time() + 0.4
        sent = 0
        while loop.time() < end:
            peer.notify()
            sent += 1
            await asyncio.sleep(0)
        assert ports.wakes < 32, f"{sent} notifications"
        # Work ends it: the event behind the mask comes, and the next ones at once.
        work.append(1)
        peer.notify()
        await until(lambda: not work)
        before = ports.wakes
        for _ in range(8):
            work.append(1)
            peer.notify()
            await until(lambda: not work)
        assert ports.wakes - before == 8
        ports.close()
        peer.channels.close()

    asyncio.run(body())


@pytest.mark.parametrize("idle", [False, True])
def test_a_callback_may_close_everything(xen: FakeXen, idle: bool) -> None:
    """Its own port and those that fired with it are served no more; nor is one that is held."""

    async def body() -> None:
        ports = Ports(xen.domain(US).open_evtchn())
        heard: list[int] = []

        def serve() -> int:
            heard.append(1)
            if len(heard) == (12 if idle else 1):
                ports.close()
            return 0

        peers = [Peer(xen, ports.listen(DOM0, serve)) for _ in range(2)]
        while len(heard) < (12 if idle else 1):
            for peer in peers:
                peer.notify()
            await asyncio.sleep(0)
        seen = len(heard)
        await asyncio.sleep(0.06)
        assert len(heard) == seen
        for peer in peers:
            peer.channels.close()

    asyncio.run(body())
