# SPDX-License-Identifier: MIT
"""Calls as the engine in C makes them.  What a frontend sees of it is in block_suite.py."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator

import pytest

from xenpy.backend import DeviceContext
from xenpy.devlog import BoundedLog
from xenpy.drivers.block._engine import lib
from xenpy.drivers.block.callbacks import CALL, StoreCallbacks
from xenpy.testing.fake_xen import FakeXen
from xenpy.testing.ram_store import RamStore
from xenpy.types import DOM0, DevId, DomId

READ, WRITE = 0, 1
UNDONE = -errno.EIO


@pytest.fixture
def store() -> RamStore:
    return RamStore("64K")


@pytest.fixture
def callbacks(store: RamStore) -> Iterator[StoreCallbacks]:
    xen = FakeXen()
    context = DeviceContext(
        kind="vbd3", domid=DomId(1), devid=DevId(51712), path="", frontend_path="",
        backend_keys={}, options={}, xen=xen.domain(DOM0),
        log=BoundedLog(logging.getLogger("callbacks"), "vbd3/1/51712"),
    )  # fmt: skip
    callbacks = StoreCallbacks(context, store)
    yield callbacks
    callbacks.close()
    assert not len(context.deferred)
    xen.close()


def results(callbacks: StoreCallbacks, *calls: tuple[int, int, int, int]) -> list[int]:
    """Make calls of (offset, place, length, write); what became of each."""
    with callbacks.memory.view(lib.BLOCK_POOL_BYTES) as view:
        for number, call in enumerate(calls):
            CALL.pack_into(view, number * CALL.size, *call, UNDONE)
        callbacks.transfer(len(calls))
        found = CALL.iter_unpack(view[: len(calls) * CALL.size])
        return [result for *_, result in found]


def test_each_call_has_a_result_of_its_own(callbacks: StoreCallbacks, store: RamStore) -> None:
    with callbacks.memory.view(0, 8192) as pool:
        pool[4096:] = b"w" * 4096
        store.view[:4096] = b"r" * 4096
        far = 1 << 40
        calls = ((0, 0, 4096, READ), (far, 0, 512, READ), (8192, 4096, 4096, WRITE))
        assert results(callbacks, *calls) == [0, UNDONE, 0]
        assert pool[:4096] == b"r" * 4096
    assert store.view[8192:12288] == b"w" * 4096


def test_nothing_is_written_after_a_flush_that_failed(
    callbacks: StoreCallbacks, store: RamStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(store, "flush", lost)
    assert callbacks.flush() == -errno.EIO
    assert results(callbacks, (0, 0, 512, WRITE), (0, 0, 512, READ)) == [-errno.EIO, 0]


def test_a_discard_that_the_store_does_not_know(callbacks: StoreCallbacks) -> None:
    assert callbacks.discard(0, 4096) == -errno.EOPNOTSUPP
