# SPDX-License-Identifier: MIT
"""What every store and every filter promises (drivers/block/store.py), by use.

A module that runs it imports every name and defines a fixture `kind`, a `StoreKind`.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xenpy.drivers.block.store import SECTOR, NativeKind, Store

SECTORS = 515
"""Of the disk: neither a multiple of a page nor of a filter's cluster."""
SIZE = SECTORS * SECTOR


@dataclass(frozen=True)
class StoreKind:
    """A kind of store under test.

    Attributes:
        open: a store of `SIZE` bytes, all zero the first time; the argument is `readonly`.
        keeps: an `open` after a `close` finds what was written.
        forgets: what is written vanishes at once.
        break_flush: makes the flushes within it fail with EIO; None if no flush can.
    """

    open: Callable[[bool], Store]
    keeps: bool = True
    forgets: bool = False
    break_flush: Callable[[Store], AbstractContextManager[None]] | None = None


@pytest.fixture
def store(kind: StoreKind) -> Iterator[Store]:
    store = kind.open(False)
    yield store
    store.close()


def memory(count: int) -> memoryview:
    """Bytes that begin at a page, as a guest's do."""
    return memoryview(mmap.mmap(-1, max(count, 1)))[:count]


def filled(content: bytes) -> memoryview:
    view = memory(len(content))
    view[:] = content
    return view


def cut(view: memoryview, places: Sequence[int]) -> list[memoryview]:
    """A view in pieces, at sectors within it."""
    ends = sorted({place * SECTOR for place in places if 0 < place * SECTOR < len(view)})
    return [view[a:b] for a, b in zip([0, *ends], [*ends, len(view)], strict=True)]


def read(store: Store, sector: int = 0, count: int = SECTORS) -> bytes:
    view = filled(b"\xee" * count * SECTOR)
    store.readinto(view, sector * SECTOR)
    return bytes(view)


def write(store: Store, sector: int, content: bytes) -> None:
    store.write(filled(content), sector * SECTOR)


def test_it_has_a_size(store: Store) -> None:
    assert store.size == SIZE
    assert store.block_size % SECTOR == 0
    assert store.discard_granularity % SECTOR == 0
    assert store.parallel
    assert not store.readonly


def test_it_begins_as_zeros(store: Store) -> None:
    assert read(store) == bytes(SIZE)


places = st.integers(0, SECTORS - 1)
step = st.tuples(
    st.sampled_from(["write", "zero", "discard", "flush", "read"]),
    places,
    st.integers(1, 40),
    st.lists(st.integers(1, 39), max_size=4),
    st.integers(1, 255),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(step, max_size=12))
def test_any_history_reads_as_it_was_written(
    kind: StoreKind, store: Store, history: list[tuple[str, int, int, list[int], int]]
) -> None:
    model = bytearray(SIZE)
    store.zero(0, SIZE)
    for operation, sector, count, pieces, value in history:
        count = min(count, SECTORS - sector)
        start, length = sector * SECTOR, count * SECTOR
        whole = slice(start, start + length)
        if operation == "write":
            content = bytes((value + at) % 256 for at in range(count) for _ in range(SECTOR))
            store.writev(cut(filled(content), pieces), start)
            model[whole] = content
        elif operation == "zero":
            store.zero(start, length)
            model[whole] = bytes(length)
        elif operation == "discard" and store.discard_granularity:
            store.discard(start, length)
            # They may be anything now, but they stay it.
            model[whole] = read(store, sector, count)
        elif operation == "flush":
            store.flush()
        else:
            view = filled(b"\xee" * length)
            store.readv(cut(view, pieces), start)
            assert bytes(view) == (bytes(length) if kind.forgets else model[whole])
    assert read(store) == (bytes(SIZE) if kind.forgets else model)


def test_what_was_flushed_is_there_again(kind: StoreKind) -> None:
    store = kind.open(False)
    content = random.Random(7).randbytes(SIZE)
    write(store, 0, content)
    store.flush()
    store.close()
    again = kind.open(True)
    assert read(again) == (content if kind.keeps else bytes(SIZE))
    again.close()


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-SECTOR, SECTOR), (SIZE, SECTOR), (SIZE - SECTOR, 2 * SECTOR), (1 << 62, SECTOR)],
)
def test_what_is_not_within_it_is_refused(store: Store, offset: int, length: int) -> None:
    view = memory(length)
    calls: list[Callable[[], None]] = [
        lambda: store.readinto(view, offset),
        lambda: store.write(view, offset),
        lambda: store.readv(cut(view, [1]), offset),
        lambda: store.writev(cut(view, [1]), offset),
        lambda: store.zero(offset, length),
    ]
    if store.discard_granularity:
        calls.append(lambda: store.discard(offset, length))
    for call in calls:
        with pytest.raises(OSError, match=r".+") as caught:
            call()
        assert caught.value.errno == errno.EINVAL
    assert read(store) == bytes(SIZE)


def test_nothing_at_all_is_no_error(store: Store) -> None:
    for offset in (0, SIZE):
        store.readv([], offset)
        store.writev([], offset)
        store.zero(offset, 0)
    assert read(store) == bytes(SIZE)


def test_a_discard_that_cannot_be_says_so(store: Store) -> None:
    if not store.discard_granularity:
        with pytest.raises(OSError, match=r".+") as caught:
            store.discard(0, SECTOR)
        assert caught.value.errno == errno.EOPNOTSUPP
    else:
        store.discard(0, SIZE)
        store.discard(SIZE, 0)


def test_a_read_only_one_changes_nothing(kind: StoreKind) -> None:
    kind.open(False).close()
    store = kind.open(True)
    assert store.readonly
    assert not store.can_zero or store.native is not None
    calls: list[Callable[[], None]] = [
        lambda: store.write(memory(SECTOR), 0),
        lambda: store.writev([memory(SECTOR)] * 2, 0),
        lambda: store.zero(0, SECTOR),
        lambda: store.discard(0, SECTOR),
    ]
    for call in calls:
        with pytest.raises(OSError, match=r".+") as caught:
            call()
        assert caught.value.errno == errno.EROFS
    store.flush()
    assert read(store) == bytes(SIZE)
    store.close()


def test_a_failed_flush_is_final(kind: StoreKind, store: Store) -> None:
    if kind.break_flush is None:
        store.flush()
        return
    store.flush()
    write(store, 3, b"x" * SECTOR)
    with kind.break_flush(store), pytest.raises(OSError, match=r".+"):
        store.flush()
    write(store, 3, b"x" * SECTOR)
    for _ in range(2):
        with pytest.raises(OSError, match="an earlier flush failed") as caught:
            store.flush()
        assert caught.value.errno == errno.EIO


def test_several_threads_use_it_at_once(kind: StoreKind, store: Store) -> None:
    """Each thread has sectors of its own, in between the others' so that clusters are shared."""
    failures: list[BaseException] = []
    threads = 4

    def work(number: int) -> None:
        rng = random.Random(number)
        mine = range(number, SECTORS - 80, threads)
        model = {sector: bytes(SECTOR) for sector in mine}
        try:
            for turn in range(60):
                sector = rng.choice(mine)
                model[sector] = bytes([1 + turn, number]) * (SECTOR // 2)
                write(store, sector, model[sector])
                other = rng.choice(mine)
                if not kind.forgets:
                    assert read(store, other, 1) == model[other]
                # And some that all write, each a whole run.
                write(store, SECTORS - 64, bytes([number + 1]) * 16 * SECTOR)
                if turn % 20 == 0:
                    store.flush()
            if not kind.forgets:
                assert {sector: read(store, sector, 1) for sector in mine} == model
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, failures
    if not kind.forgets:
        for sector in range(16):
            content = read(store, SECTORS - 64 + sector, 1)
            assert content in [bytes([number + 1]) * SECTOR for number in range(threads)]


def test_an_engine_finds_the_same_bytes(store: Store) -> None:
    native = store.native
    if native is None:
        return
    assert (native.size, native.readonly) == (SIZE, False)
    content = random.Random(8).randbytes(SIZE)
    write(store, 0, content)
    if native.kind is NativeKind.NULL:
        assert native.fd == -1
    else:
        view = memory(SIZE)
        assert os.preadv(native.fd, [view], 0) == SIZE
        assert bytes(view) == content
    if native.kind is NativeKind.MEMORY:
        with mmap.mmap(native.fd, native.size) as mapped:
            assert mapped[:] == content
        with pytest.raises(PermissionError):
            os.truncate(native.fd, 0)


def test_a_close_gives_everything_back(kind: StoreKind) -> None:
    fds = Path("/proc/self/fd")
    before = len(list(fds.iterdir()))
    store = kind.open(False)
    write(store, 0, b"x" * SECTOR)
    store.flush()
    store.close()
    store.close()
    assert len(list(fds.iterdir())) == before
