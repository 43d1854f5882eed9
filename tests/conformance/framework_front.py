# SPDX-License-Identifier: MIT
"""A daemon and frontends to test the framework with, over a XenStore and any environment.

The toolstack's part (making and removing nodes) and the guest's part (keys, states, rings)
are both played here.  The frontends' nodes lie where no kernel driver looks for them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from conformance.block_front import PATIENCE, Blkfront, BlockEnvironment, eventually
from xenpy.drivers.block.back import BlockBackend
from xenpy.service import Service
from xenpy.xenstore import Store, Transaction

__all__ = [
    "HOT", "IMAGE_BYTES", "FrameworkEnvironment", "Guest", "Host", "a_witness", "busy",
    "make_image", "resident", "seconds",
]  # fmt: skip

T = TypeVar("T")

KIND = "xenpytest"
IMAGE_BYTES = 64 * 512
HOT = 51712
WITNESS = 51728


class FrameworkEnvironment(BlockEnvironment, Protocol):
    """A `BlockEnvironment` with a XenStore."""

    def store_path(self) -> str | None:
        """What the daemon opens; None for the default."""

    def sibling(self) -> FrameworkEnvironment:
        """The same with another frontend domain, if there is one that can die alone."""

    def kill_front_domain(self) -> bool:
        """The frontend's domain dies.  False where that is this very domain."""


class Host:
    """`xenpy serve` in a thread, and the toolstack's hands on the store."""

    def __init__(self, env: FrameworkEnvironment) -> None:
        self.env = env
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="host")
        self._thread.start()
        self.root = f"/local/domain/{env.back_domid}/backend/{KIND}"
        self.store = self.run(self._open())
        self.tools = self.run(self._open())
        self.service = Service(
            self.store, KIND, BlockBackend, xen=env.back_xen(), domid=env.back_domid,
            options={"queues": "2"},
        )  # fmt: skip
        self._task = self.run(self._start())
        self._closed = False

    async def _open(self) -> Store:
        return await Store.open(self.env.store_path(), timeout=PATIENCE).__aenter__()

    async def _start(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self.service.run())
        await self.service.ready.wait()
        return task

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(2 * PATIENCE)

    def spawn(self, coroutine: Coroutine[object, object, T]) -> Callable[[], T]:
        """Start it; the returned function waits for what it returns, as long as the test may."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result

    def get(self, path: str) -> str | None:
        return self.run(self.tools.get(path))

    def write(self, path: str, value: str | bytes | int) -> None:
        self.run(self.tools.write(path, value))

    def rm(self, path: str) -> None:
        self.run(self.tools.rm(path))

    def until(self, path: str, *values: str | None) -> None:
        """Wait until a key has one of these values."""
        eventually(lambda: self.get(path) in values)

    def close(self) -> None:
        """End the daemon.  Harmless when it has ended."""
        if self._closed:
            return
        self._closed = True
        self.close_service()
        self.run(self._close_stores())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def close_service(self) -> None:
        """End the daemon; the toolstack's connection stays."""
        self.run(self._stop())

    async def _stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _close_stores(self) -> None:
        for store in (self.store, self.tools):
            await store.__aexit__(None, None, None)


class Guest:
    """One device as toolstack and frontend make it."""

    def __init__(
        self, host: Host, image: Path, devid: int, env: FrameworkEnvironment | None = None
    ) -> None:
        self.host = host
        self.env = env or host.env
        self.devid = devid
        self.domid = self.env.front_domid
        self.back = f"{host.root}/{self.domid}/{devid}"
        self.front_path = f"/local/domain/{self.domid}/data/xenpytest/{devid}"
        self.image = image
        self.ring: Blkfront | None = None
        self.make()

    def make(self) -> None:
        """What libxl writes."""
        backend = {
            "frontend": self.front_path, "frontend-id": str(self.domid), "online": "1",
            "state": "1", "params": str(self.image), "mode": "w", "device-type": "disk",
        }  # fmt: skip
        frontend = {"backend": self.back, "backend-id": str(self.env.back_domid), "state": "1"}

        async def write(tx: Transaction) -> None:
            for path, owner, reader, keys in (
                (self.front_path, self.domid, self.env.back_domid, frontend),
                (self.back, self.env.back_domid, self.domid, backend),
            ):
                await tx.mkdir(path)
                await tx.set_perms(path, f"n{owner},r{reader}")
                for key, value in keys.items():
                    await tx.write(f"{path}/{key}", value)

        self.host.run(self.host.tools.transact(write))

    def write(self, key: str, value: str | bytes | int) -> None:
        self.host.write(f"{self.front_path}/{key}", value)

    def state(self) -> str | None:
        """The backend's."""
        return self.host.get(f"{self.back}/state")

    def wait(self, *states: str | None) -> None:
        """Wait for the backend to show one of these."""
        self.host.until(f"{self.back}/state", *states)

    def share(self) -> Blkfront:
        """Share a ring, once the backend waits for one."""
        self.wait("2")
        self.ring = Blkfront(self.env, data_pages=4)
        return self.ring

    def publish(self, keys: Mapping[str, str | bytes | None]) -> None:
        """Write a frontend's keys, the state last; None leaves a key out."""
        for key, value in sorted(keys.items(), key=lambda item: item[0] == "state"):
            if value is not None:
                self.write(key, value)

    def offer(self, changes: Mapping[str, str | bytes | None] | None = None) -> Blkfront:
        """Share a ring and publish it, with `changes`."""
        ring = self.share()
        self.publish({**ring.keys(), **(changes or {})})
        return ring

    def connect(self) -> Blkfront:
        ring = self.offer()
        self.wait("4")
        self.write("state", "4")
        return ring

    def come_back(self) -> None:
        """Connect as Linux's xen-blkfront does: what the backend may still do about states of
        before ends in Closing, and then one starts over."""
        for _ in range(4):
            self.write("state", "1")
            self.offer()
            self.wait("4", "5", "6")
            if self.state() == "4":
                self.write("state", "4")
                return
            self.write("state", "6")
            # Or it has started over meanwhile, for the Initialising that it saw last.
            self.wait("2", "6")
            self.drop()
        raise AssertionError("the backend closed four times")

    def check(self, number: int) -> None:
        """Write, flush and read back."""
        assert self.ring is not None
        pattern = number.to_bytes(4, "little") * 4096
        self.ring.write(8 * (number % 4), pattern)
        assert self.ring.flush() == 0
        assert self.ring.read(8 * (number % 4), 4) == pattern

    def check_unserved(self) -> None:
        """Nobody answers; a backend that did would need far less than this."""
        assert self.ring is not None
        time.sleep(0.2)
        assert self.ring.ring.take() == []

    def die(self) -> None:
        """The frontend's domain dies; a domain that is ours only loses its directory."""
        if not self.env.kill_front_domain():
            self.host.rm(self.front_path)

    def error(self) -> str | None:
        """The error node of the device, as the kernel's xenbus_dev_error names it."""
        home = f"/local/domain/{self.env.back_domid}"
        name = self.back.removeprefix(f"{home}/backend/")
        return self.host.get(f"{home}/error/backend/{name}/error")

    def shut(self) -> None:
        """Close as a frontend does, and wait for the backend to have let go."""
        self.write("state", "5")
        self.wait("5", "6", None)
        self.write("state", "6")
        self.wait("6", None)

    def remove(self) -> None:
        """What the toolstack does in the end; then the guest's own resources."""

        async def offline(tx: Transaction) -> None:
            if await tx.exists(f"{self.back}/state"):
                await tx.write(f"{self.back}/online", "0")
                # As libxl: a device that is closed already is not asked again.
                if await tx.read(f"{self.back}/state") != "6":
                    await tx.write(f"{self.back}/state", "5")

        self.host.run(self.host.tools.transact(offline))
        self.host.write(f"{self.front_path}/state", "6")
        self.wait("6", None)
        self.host.rm(self.back)
        self.host.rm(self.front_path)
        eventually(lambda: self.back not in self.host.service.devices)
        self.drop()

    def drop(self) -> None:
        """Give the ring back."""
        if self.ring is not None:
            self.ring.close()
            self.ring = None


def make_image(path: Path) -> Path:
    path.write_bytes(bytes(IMAGE_BYTES))
    return path


@contextmanager
def a_witness(host: Host, directory: Path) -> Iterator[Guest]:
    """A second device of the daemon, connected; it must not notice anything."""
    witness = Guest(host, make_image(directory / "witness.img"), WITNESS)
    witness.connect()
    witness.check(1)
    yield witness
    witness.check(3)
    assert witness.error() is None
    witness.remove()


@contextmanager
def busy(guest: Guest) -> Iterator[list[int]]:
    """Requests one after the other in a thread meanwhile; yields their statuses."""
    assert guest.ring is not None
    ring, statuses = guest.ring, list[int]()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            statuses.append(ring.status(0, 0, ring.whole_pages(1)))

    thread = threading.Thread(target=work, name="guest")
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def seconds(count: float) -> Iterator[None]:
    """Turns for so many seconds."""
    end = time.monotonic() + count
    while time.monotonic() < end:
        yield
