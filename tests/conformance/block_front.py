# SPDX-License-Identifier: MIT
"""A small blkif frontend and a backend to test it against, over any `BlockEnvironment`.

The frontend is honest only as far as it is asked to be: it sends raw slots as readily as
good requests, and it can scribble over the ring's indices.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from xenpy.backend import DeviceContext, DeviceError, XenAccess
from xenpy.devlog import BoundedLog
from xenpy.drivers.block.back import BlockBackend
from xenpy.drivers.block.protocol import (
    ABI_NATIVE,
    OP_DISCARD,
    OP_FLUSH_DISKCACHE,
    OP_READ,
    OP_WRITE,
    RSP_OKAY,
    SECTOR_SIZE,
    Abi,
)
from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantShare
from xenpy.memory import Memory
from xenpy.ring import FrontRing
from xenpy.types import PAGE_SIZE, DevId, DomId

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds until a test gives up; far more than an emulated machine needs."""


class BlockEnvironment(Protocol):
    """Where the two halves meet: the fakes, or a real Xen with both halves in one domain."""

    front_domid: DomId
    back_domid: DomId
    stranger_domid: DomId

    def back_xen(self) -> XenAccess:
        """What the backend opens its handles with."""

    def open_share(self) -> GrantShare: ...
    def open_channels(self) -> EventChannels: ...

    def census(self) -> Mapping[str, int]:
        """Everything that can leak, counted."""


@dataclass(frozen=True)
class Response:
    id: int
    operation: int
    status: int


class Blkfront:
    """The frontend's half of a disk."""

    def __init__(
        self,
        env: BlockEnvironment,
        *,
        abi: Abi = ABI_NATIVE,
        order: int = 0,
        data_pages: int = 16,
        table_pages: int = 0,
        persistent: bool = True,
        start: int = 0,
    ) -> None:
        self.env = env
        self.abi = abi
        self.persistent = persistent
        self.nr_pages = 1 << order
        self.share = env.open_share()
        self.channels = env.open_channels()
        self.ring_pages = self.share.share(env.back_domid, self.nr_pages)
        self.ring = FrontRing(self.ring_pages, abi.layout, nr_pages=self.nr_pages, start=start)
        self.data = self.share.share(env.back_domid, data_pages)
        self.refs = list(self.data.refs)
        self.tables = self.share.share(env.back_domid, table_pages) if table_pages else None
        self.port = self.channels.bind_unbound(env.back_domid)
        self._next_id = 1

    def keys(self) -> dict[str, str]:
        keys = {"event-channel": str(self.port), "protocol": self.abi.name, "state": "3"}
        if self.persistent:
            keys["feature-persistent"] = "1"
        if self.nr_pages == 1:
            keys["ring-ref"] = str(self.ring_pages.refs[0])
        else:
            keys["ring-page-order"] = str(self.nr_pages.bit_length() - 1)
            for page, ref in enumerate(self.ring_pages.refs):
                keys[f"ring-ref{page}"] = str(ref)
        return keys

    def send(self, slots: Sequence[bytes]) -> None:
        if self.ring.put(slots):
            self.channels.notify(self.port)

    def receive(self, count: int) -> list[Response]:
        """The next `count` responses, in the order of the ring."""
        responses: list[Response] = []
        poller = select.poll()
        poller.register(self.channels.fileno(), select.POLLIN)
        deadline = time.monotonic() + PATIENCE
        while True:
            taken = [Response(*self.abi.unpack_response(slot)) for slot in self.ring.take()]
            responses += taken
            if len(responses) >= count:
                assert len(responses) == count, f"{len(responses)} answers to {count} requests"
                return responses
            if taken or self.ring.final_check():
                continue
            left = deadline - time.monotonic()
            assert left > 0, f"{len(responses)} of {count} answers within {PATIENCE} s"
            if poller.poll(left * 1000):
                self.channels.unmask(self.channels.pending())

    def discard(self, count: int, failed: threading.Event) -> None:
        """Wait for `count` responses and look at none: for slots that somebody scribbles on."""
        seen = 0
        deadline = time.monotonic() + PATIENCE
        while seen < count:
            seen += len(self.ring.take())
            assert not failed.is_set(), "the device failed"
            assert time.monotonic() < deadline, f"{seen} of {count} answers within {PATIENCE} s"

    def ask(self, slots: Sequence[bytes]) -> list[Response]:
        """Send any number of slots, in as many rounds as the ring needs; all answers."""
        responses: list[Response] = []
        rest = list(slots)
        while rest:
            now, rest = rest[: self.ring.free], rest[self.ring.free :]
            self.send(now)
            responses += self.receive(len(now))
        return responses

    def request(
        self, operation: int, sector: int, segments: Sequence[tuple[int, int, int]]
    ) -> tuple[int, bytes]:
        """A fresh id and a good slot; segments are (gref, first, last)."""
        ident = self._next_id
        self._next_id += 1
        return ident, self.abi.pack_request(operation, ident, sector, segments)

    def indirect(
        self,
        operation: int,
        sector: int,
        segments: Sequence[tuple[int, int, int]],
        *,
        table: int = 0,
        nr_segments: int | None = None,
    ) -> tuple[int, bytes]:
        """A fresh id and a good indirect slot, whose segments go into the pages from `table`.

        Args:
            nr_segments: what the slot says, when it is to differ from the truth.
        """
        assert self.tables is not None
        raw = self.abi.pack_segments(segments)
        with self.tables.view(table * PAGE_SIZE, len(raw)) as view:
            view[:] = raw
        ident = self._next_id
        self._next_id += 1
        count = len(segments) if nr_segments is None else nr_segments
        refs = self.tables.refs[table : table + max(1, -(-len(raw) // PAGE_SIZE))]
        return ident, self.abi.pack_indirect(operation, ident, sector, count, refs)

    def indirect_status(
        self, operation: int, sector: int, segments: Sequence[tuple[int, int, int]]
    ) -> int:
        """Send one indirect request; the status of its answer, which names `operation`."""
        ident, slot = self.indirect(operation, sector, segments)
        (response,) = self.ask([slot])
        assert (response.id, response.operation) == (ident, operation)
        return response.status

    def status(self, operation: int, sector: int, segments: Sequence[tuple[int, int, int]]) -> int:
        """Send one request; the status of its answer."""
        ident, slot = self.request(operation, sector, segments)
        (response,) = self.ask([slot])
        assert (response.id, response.operation) == (ident, operation)
        return response.status

    def whole_pages(self, count: int, first_page: int = 0) -> list[tuple[int, int, int]]:
        return [(ref, 0, 7) for ref in self.refs[first_page : first_page + count]]

    def write(self, sector: int, content: bytes) -> None:
        """Write whole pages, at most 11, through the first data pages."""
        pages = len(content) // PAGE_SIZE
        self.poke(0, content)
        assert self.status(OP_WRITE, sector, self.whole_pages(pages)) == RSP_OKAY

    def read(self, sector: int, pages: int) -> bytes:
        """Read whole pages, at most 11, through the first data pages."""
        self.poke(0, b"\xc5" * pages * PAGE_SIZE)
        assert self.status(OP_READ, sector, self.whole_pages(pages)) == RSP_OKAY
        return self.peek(0, pages * PAGE_SIZE)

    def flush(self) -> int:
        return self.status(OP_FLUSH_DISKCACHE, 0, [])

    def discard_sectors(self, sector: int, count: int, flag: int = 0) -> int:
        """Send a DISCARD; the status of its answer."""
        ident = self._next_id
        self._next_id += 1
        (response,) = self.ask([self.abi.pack_discard(ident, sector, count, flag)])
        assert (response.id, response.operation) == (ident, OP_DISCARD)
        return response.status

    def poke(self, offset: int, content: bytes) -> None:
        with self.data.view(offset, len(content)) as view:
            view[:] = content

    def peek(self, offset: int, length: int) -> bytes:
        with self.data.view(offset, length) as view:
            return bytes(view)

    def scribble(self, offset: int, *values: int) -> None:
        """Overwrite 32-bit words of the ring: req_prod, req_event, rsp_prod, rsp_event."""
        with self.ring_pages.view(offset, 4 * len(values)) as view:
            struct.pack_into(f"<{len(values)}I", view, 0, *(value % 2**32 for value in values))

    def word(self, offset: int) -> int:
        with self.ring_pages.view(offset, 4) as view:
            return int(struct.unpack("<I", view)[0])

    def notify(self) -> None:
        self.channels.notify(self.port)

    def close(self) -> None:
        self.channels.unbind(self.port)
        self.channels.close()
        self.data.close()
        if self.tables is not None:
            self.tables.close()
        self.ring_pages.close()
        self.share.close()


def keys_of(fronts: Sequence[Blkfront]) -> dict[str, str]:
    """As Linux's frontend writes them: those of a queue in a directory of its own."""
    common = {
        name: value
        for name, value in fronts[0].keys().items()
        if not name.startswith("ring-ref") and name != "event-channel"
    }
    keys = {**common, "multi-queue-num-queues": str(len(fronts))}
    for number, front in enumerate(fronts):
        keys[f"queue-{number}"] = ""
        for name, value in front.keys().items():
            if name not in common:
                keys[f"queue-{number}/{name}"] = value
    return keys


class Daemon:
    """An event loop in a thread: what `xenpy serve` is, without XenStore."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="daemon")
        self._thread.start()

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Served:
    """A disk as the daemon serves it."""

    def __init__(
        self,
        daemon: Daemon,
        env: BlockEnvironment,
        image: Path,
        devid: int,
        mode: str = "w",
        tier: str = "auto",
        *,
        backend_keys: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.daemon = daemon
        self.image = image
        self.failures: list[Exception] = []
        self.failed = threading.Event()
        logger = logging.getLogger("block_suite")
        self.context = DeviceContext(
            kind="vbd3",
            domid=env.front_domid,
            devid=DevId(devid),
            path=f"/local/domain/0/backend/vbd3/{env.front_domid}/{devid}",
            frontend_path=f"/local/domain/{env.front_domid}/device/vbd/{devid}",
            backend_keys={
                "params": str(image),
                "mode": mode,
                "device-type": "disk",
                **(backend_keys or {}),
            },
            options={"tier": tier, **(options or {})},
            xen=env.back_xen(),
            log=BoundedLog(logger, f"vbd3/{env.front_domid}/{devid}"),
            on_failure=self._on_failure,
        )
        self.device = BlockBackend(self.context)
        try:
            self.features = daemon.run(self.device.prepare())
        except DeviceError:
            daemon.run(self.device.close())
            raise

    def connect(self, keys: Mapping[str, str]) -> Mapping[str, str | int]:
        return self.daemon.run(self.device.connect(keys))

    def disconnect(self) -> None:
        self.daemon.run(self.device.disconnect())

    def close(self) -> None:
        self.disconnect()
        self.daemon.run(self.device.close())
        assert not len(self.context.deferred)

    def failure(self) -> Exception:
        """Wait until the data plane has failed; what it failed with."""
        assert self.failed.wait(PATIENCE), "the device did not fail"
        return self.failures[0]

    def stats(self) -> Mapping[str, int]:
        return self.device.stats()

    def _on_failure(self, error: Exception) -> None:
        self.failures.append(error)
        self.failed.set()


class Witness:
    """A second disk of the same daemon: whatever happens to the first, this one goes on."""

    def __init__(self, daemon: Daemon, env: BlockEnvironment, image: Path) -> None:
        self.front = Blkfront(env, data_pages=4)
        self.served = Served(daemon, env, image, devid=51728)
        self.served.connect(self.front.keys())
        self._round = 0

    def check(self) -> None:
        """Write, flush and read back; not one request may fail."""
        self._round += 1
        pattern = self._round.to_bytes(4, "little") * PAGE_SIZE
        self.front.write(8 * (self._round % 4), pattern)
        assert self.front.flush() == RSP_OKAY
        assert self.front.read(8 * (self._round % 4), 4) == pattern
        assert self.served.failures == []
        assert self.served.stats()["errors"] == 0

    def close(self) -> None:
        self.served.close()
        self.front.close()


@contextmanager
def connected(
    front: Blkfront, served: Served, keys: Mapping[str, str] | None = None
) -> Iterator[Mapping[str, str | int]]:
    published = served.connect(front.keys() if keys is None else keys)
    try:
        yield published
    finally:
        served.disconnect()


def calls_of_io(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a file in Python's hands is asked for from now on: "write SECTOR" and "sync"."""
    calls: list[str] = []
    pwritev, fdatasync = os.pwritev, os.fdatasync

    def write(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        calls.append(f"write {offset // SECTOR_SIZE}")
        return pwritev(fd, buffers, offset)

    def sync(fd: int) -> None:
        calls.append("sync")
        fdatasync(fd)

    monkeypatch.setattr(os, "pwritev", write)
    monkeypatch.setattr(os, "fdatasync", sync)
    return calls


@contextmanager
def flipping(pages: Memory, places: Iterable[int], values: Sequence[int]) -> Iterator[None]:
    """A thread gives bytes of shared pages one value after the other, all the time."""
    at = list(places)
    stop = threading.Event()

    def flip() -> None:
        with pages.view() as view:
            while not stop.is_set():
                for value in values:
                    for place in at:
                        view[place] = value

    flipper = threading.Thread(target=flip)
    flipper.start()
    try:
        yield
    finally:
        stop.set()
        flipper.join()


def eventually(condition: Callable[[], bool]) -> None:
    """Look until it holds; for counters that another thread writes.

    Ever less often: whoever has something to do for it may have the same CPU.
    """
    deadline = time.monotonic() + PATIENCE
    pause = 0.0
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s"
        time.sleep(pause)
        pause = min(0.02, 2 * pause or 0.0005)


def sectors(first: int, count: int, content: bytes) -> bytes:
    """Sectors of an image's content."""
    return content[first * SECTOR_SIZE : (first + count) * SECTOR_SIZE]
