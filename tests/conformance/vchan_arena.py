# SPDX-License-Identifier: MIT
"""Where the suite of vchan runs: two halves, their stores, and what is held in the end."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from conformance.block_front import PATIENCE
from conformance.xen_env import Loopback
from xenpy.drivers import vchan
from xenpy.drivers.vchan.channel import NativeVchan, VchanAccess
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.fake_xenstored import FakeXenstored
from xenpy.types import DOM0, DomId
from xenpy.xenstore import Store

__all__ = ["Arena", "Arenas", "Half", "fake_arena", "loopback_arena"]

PATH = "data/vchan-test"
GUEST = DomId(1)
LINUX_LIMIT = 1024
LIMIT = Path("/sys/module/xen_gntalloc/parameters/limit")


@dataclass(frozen=True, slots=True)
class Half:
    """A domain as a program in it sees it."""

    domid: DomId
    store: Store
    xen: VchanAccess


@dataclass(slots=True)
class Arena:
    """A server's domain and a client's.

    Attributes:
        census: what is held, counted.
        limit: pages that gntalloc gives.
        destroy: what xenstored does when that domain is destroyed; only a fake domain is.
    """

    server: Half
    client: Half
    census: Callable[[], Mapping[str, int]]
    limit: int
    destroy: Callable[[DomId], None] | None = None
    path: str = PATH

    def listen(self, left: int = 0, right: int = 0) -> vchan.Server:
        return vchan.listen(
            self.client.domid, self.path, left=left, right=right,
            store=self.server.store, xen=self.server.xen,
        )  # fmt: skip

    async def connect(
        self, timeout: float = PATIENCE
    ) -> tuple[vchan.VchanReader, vchan.VchanWriter]:
        return await vchan.open_connection(
            self.server.domid, self.path, timeout=timeout,
            store=self.client.store, xen=self.client.xen,
        )  # fmt: skip

    @property
    def where(self) -> str:
        """The path of the keys, absolute."""
        return f"/local/domain/{self.server.domid}/{self.path}"


Arenas = Callable[[], AbstractAsyncContextManager[Arena]]


async def settled(census: Callable[[], Mapping[str, int]], before: Mapping[str, int]) -> None:
    """The kernel gives pages back when it gets round to it."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while (after := census()) != before and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.01)
    assert after == before, f"still held: {after}, before {before}"


@asynccontextmanager
async def fake_arena(
    server: DomId = DOM0, client: DomId = GUEST, xen: FakeXen | None = None
) -> AsyncIterator[Arena]:
    """Over the fakes; a guest's store is not privileged."""
    xen = xen or FakeXen()
    xen.grants.limit = LINUX_LIMIT

    def census() -> Mapping[str, int]:
        return {
            **xen.census(),
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "tasks": len(asyncio.all_tasks()),
        }

    async with FakeXenstored() as fake:
        paths = {DOM0: fake.path}
        for domid in {server, client} - {DOM0}:
            fake.introduce(domid)
            paths[domid] = await fake.listen(domid)
        async with Store.open(paths[server]) as first, Store.open(paths[client]) as second:
            halves = (
                Half(server, first, xen.domain(server)),
                Half(client, second, xen.domain(client)),
            )
            # An answer from each: both ends of a connection are this process's.
            assert (await first.domid(), await second.domid()) == (server, client)
            before = census()
            yield Arena(*halves, census, LINUX_LIMIT, fake.release_domain)
            await settled(census, before)
            assert fake.get(f"/local/domain/{server}/{PATH}") is None
    xen.close()


@asynccontextmanager
async def loopback_arena() -> AsyncIterator[Arena]:
    """On a real Xen: domain 0 is its own peer."""
    async with Store.open() as first, Store.open() as second:
        halves = Half(DOM0, first, NativeVchan()), Half(DOM0, second, NativeVchan())

        def census() -> Mapping[str, int]:
            return {**Loopback().census(), "tasks": len(asyncio.all_tasks())}

        before = census()
        yield Arena(*halves, census, int(LIMIT.read_text()))
        await settled(census, before)
        assert not await first.exists(f"/local/domain/0/{PATH}")
