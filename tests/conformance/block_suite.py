# SPDX-License-Identifier: MIT
"""blkif front to back, honest and hostile: one suite for the fakes and for a real Xen.

A module that runs it imports every name and defines a fixture `env`, a `BlockEnvironment`.
The ids in the docstrings (R1, G1, B1 ...) are those of the project's hostile-peer checklist.

After each case nothing may be left held, and a second disk of the same daemon has gone on
without one failed request.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from conformance.block_front import (
    PATIENCE,
    Blkfront,
    BlockEnvironment,
    Daemon,
    Response,
    Served,
    Witness,
    calls_of_io,
    connected,
    eventually,
    flipping,
    sectors,
)
from xenpy.backend import NativeXen
from xenpy.drivers.block import datapath
from xenpy.drivers.block.datapath import BATCH_LIMIT
from xenpy.drivers.block.grant_cache import GrantCache
from xenpy.drivers.block.protocol import (
    ABI_NATIVE,
    ABI_X86_32,
    ABI_X86_64,
    MAX_SEGMENTS,
    OP_FLUSH_DISKCACHE,
    OP_INDIRECT,
    OP_READ,
    OP_WRITE,
    OP_WRITE_BARRIER,
    RSP_EOPNOTSUPP,
    RSP_ERROR,
    RSP_OKAY,
    Abi,
    Disk,
    Indirect,
    Refusal,
    Request,
)
from xenpy.errors import PeerError, XenError
from xenpy.types import PAGE_SIZE

DISK_SECTORS = 2048
ROUNDS = 20
"""Of slots that change while they are read; tests/engine has a million."""
CONTENT = random.Random(1).randbytes(DISK_SECTORS * 512)
RING_HEADER = 64
"""Bytes before the first slot of a ring (ring.h: four indices and padding)."""

REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = 0, 4, 8, 12

only_in_python = pytest.mark.parametrize("tier", ["batch"])
"""For cases that reach into the engine in Python; tests/engine has the like of them in C."""
store_in_python = pytest.mark.parametrize("tier", ["callback", "batch"])
"""For cases that make a store fail or watch it; likewise."""
both_ways = pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "copied"])


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.close()


@pytest.fixture
def witness(env: BlockEnvironment, daemon: Daemon, tmp_path: Path) -> Iterator[Witness]:
    image = tmp_path / "witness.img"
    image.write_bytes(bytes(64 * 512))
    witness = Witness(daemon, env, image)
    try:
        witness.check()
        before = env.census()
        yield witness
        eventually(lambda: env.census() == before)
        witness.check()
    finally:
        # Also after a failure, which would be every later case's otherwise.
        witness.close()


@pytest.fixture(params=["native", "callback", "batch"])
def tier(request: pytest.FixtureRequest) -> str:
    """Which engine serves the disk."""
    return str(request.param)


@pytest.fixture
def served(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, tmp_path: Path, tier: str
) -> Iterator[Served]:
    image = tmp_path / "disk.img"
    image.write_bytes(CONTENT)
    served = Served(daemon, env, image, devid=51712, tier=tier)
    yield served
    served.close()
    witness.check()


@pytest.fixture
def front(env: BlockEnvironment, served: Served) -> Iterator[Blkfront]:
    """A frontend with copied grants.  Closed after the backend has let go (`served`'s
    fixture closes later, so the disconnect happens here)."""
    front = Blkfront(env, persistent=False)
    yield front
    served.disconnect()
    front.close()


# ------------------------------------------------------------------ it works


@both_ways
@pytest.mark.parametrize("order", [0, 4])
@pytest.mark.parametrize("abi", [ABI_X86_64, ABI_X86_32], ids=lambda abi: abi.name)
def test_what_is_written_is_read_and_is_in_the_image(
    env: BlockEnvironment, served: Served, abi: Abi, order: int, persistent: bool
) -> None:
    front = Blkfront(env, abi=abi, order=order, persistent=persistent)
    with connected(front, served):
        assert front.read(100, MAX_SEGMENTS) == sectors(100, 88, CONTENT)
        pattern = random.Random(2).randbytes(MAX_SEGMENTS * PAGE_SIZE)
        front.write(1000, pattern)
        assert front.flush() == RSP_OKAY
        assert front.read(1000, MAX_SEGMENTS) == pattern
    expected = CONTENT[: 1000 * 512] + pattern + CONTENT[1088 * 512 :]
    assert served.image.read_bytes() == expected
    stats = served.stats()
    assert (stats["rd_req"], stats["wr_req"], stats["f_req"]) == (2, 1, 1)
    assert (stats["rd_sect"], stats["wr_sect"]) == (176, 88)
    assert (stats["requests"], stats["errors"], stats["refused"]) == (4, 0, 0)
    assert bool(stats["grants_mapped"]) == persistent
    assert bool(stats["grants_copied"]) != persistent
    assert stats["grants_mapped"] == stats["grants_unmapped"]
    front.close()


def test_published_keys(served: Served, front: Blkfront) -> None:
    assert served.features == {
        "feature-barrier": 1, "feature-flush-cache": 1, "feature-persistent": 1,
        "feature-max-indirect-segments": 256,
        "feature-discard": 1, "discard-granularity": 4096, "discard-alignment": 0,
        "discard-secure": 0, "max-ring-page-order": 4,
        "multi-queue-max-queues": min(4, os.cpu_count() or 1),
    }  # fmt: skip
    real = isinstance(served.context.xen, NativeXen)
    with connected(front, served) as keys:
        assert keys == {
            "sectors": DISK_SECTORS, "sector-size": 512, "physical-sector-size": 4096, "info": 0,
            **({"kthread-pid": os.getpid()} if real else {}),
        }  # fmt: skip


@both_ways
def test_parts_of_pages(env: BlockEnvironment, served: Served, persistent: bool) -> None:
    front = Blkfront(env, persistent=persistent)
    with connected(front, served):
        front.poke(0, b"\xc5" * 3 * PAGE_SIZE)
        segments = [(front.refs[0], 7, 7), (front.refs[1], 0, 2), (front.refs[2], 3, 3)]
        assert front.status(OP_READ, 10, segments) == RSP_OKAY
        got = front.peek(0, 3 * PAGE_SIZE)
        expected = bytearray(b"\xc5" * 3 * PAGE_SIZE)
        expected[7 * 512 : 8 * 512] = sectors(10, 1, CONTENT)
        expected[PAGE_SIZE : PAGE_SIZE + 3 * 512] = sectors(11, 3, CONTENT)
        expected[2 * PAGE_SIZE + 3 * 512 : 2 * PAGE_SIZE + 4 * 512] = sectors(14, 1, CONTENT)
        assert got == bytes(expected)
        assert front.status(OP_WRITE, 500, segments) == RSP_OKAY
    assert sectors(500, 5, served.image.read_bytes()) == sectors(10, 5, CONTENT)
    front.close()


def test_requests_before_the_connect_are_served(served: Served, front: Blkfront) -> None:
    ident, slot = front.request(OP_READ, 0, front.whole_pages(1))
    front.send([slot])
    with connected(front, served):
        assert [response.id for response in front.receive(1)] == [ident]


def test_what_is_in_the_ring_at_a_disconnect_is_answered(served: Served, front: Blkfront) -> None:
    served.connect(front.keys())
    slots = [front.request(OP_WRITE, page, front.whole_pages(1))[1] for page in range(20)]
    front.send(slots)
    served.disconnect()
    assert len(front.receive(20)) == 20


def test_a_frontend_may_come_back(env: BlockEnvironment, served: Served) -> None:
    for round_ in range(3):
        front = Blkfront(env)
        with connected(front, served):
            front.write(0, bytes([round_]) * PAGE_SIZE)
        front.close()
    assert served.image.read_bytes()[:PAGE_SIZE] == b"\2" * PAGE_SIZE


def test_a_ring_is_taken_over_where_another_daemon_left_it(served: Served, front: Blkfront) -> None:
    """Parked: the same ring, with indices that are not 0, and requests waiting in it."""
    with connected(front, served):
        front.write(8, b"a" * PAGE_SIZE)
    ident, slot = front.request(OP_READ, 8, front.whole_pages(1))
    front.send([slot])
    with connected(front, served):
        assert [response.id for response in front.receive(1)] == [ident]
        assert front.read(8, 1) == b"a" * PAGE_SIZE


def test_one_notification_answers_a_whole_batch(served: Served, front: Blkfront) -> None:
    slots = [front.request(OP_READ, 0, front.whole_pages(1))[1] for _ in range(BATCH_LIMIT)]
    front.send(slots)
    with connected(front, served):
        front.receive(BATCH_LIMIT)
        stats = served.stats()
    assert (stats["batches"], stats["notifications"]) == (1, 1)


# ------------------------------------------------------------------ durability and errors


@store_in_python
def test_a_flush_follows_the_writes_of_its_batch(
    served: Served, front: Blkfront, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of_io(monkeypatch)
    page = front.whole_pages(1)
    front.send([
        front.request(OP_WRITE, 0, page)[1],
        front.request(OP_WRITE, 8, page)[1],
        front.request(OP_WRITE, 64, page)[1],
        front.request(OP_FLUSH_DISKCACHE, 72, page)[1],
        front.request(OP_WRITE, 128, page)[1],
    ])  # fmt: skip
    with connected(front, served):
        assert {response.status for response in front.receive(5)} == {RSP_OKAY}
    # Neighbours together; a FLUSH with segments is a flush and then a write, even where it
    # goes on at the end of the write before it.
    assert calls == ["write 0", "write 64", "sync", "write 72", "write 128"]


@store_in_python
def test_a_failed_flush_is_never_forgotten(
    served: Served, front: Blkfront, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: int) -> None:
        raise OSError(errno.EIO, "lost")

    with connected(front, served):
        assert front.flush() == RSP_OKAY
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", lost)
            assert front.flush() == RSP_ERROR
        assert front.flush() == RSP_ERROR
    with connected(other := Blkfront(front.env), served):
        assert other.flush() == RSP_ERROR
    other.close()
    assert "writes are lost" in served.daemon.run(served.device.hand_over())


@both_ways
def test_b3_an_image_cut_short_gives_errors_and_nobody_s_bytes(
    env: BlockEnvironment, served: Served, persistent: bool
) -> None:
    front = Blkfront(env, persistent=persistent)
    with connected(front, served):
        # The pool now holds data of the disk.
        front.read(0, MAX_SEGMENTS)
        os.truncate(served.image, 1024 * 512)
        front.poke(0, b"\xc5" * PAGE_SIZE)
        assert front.status(OP_READ, 1024, front.whole_pages(1)) == RSP_ERROR
        assert front.peek(0, PAGE_SIZE) == b"\xc5" * PAGE_SIZE
        # Neighbours: one of them still within the file.
        good, first = front.request(OP_READ, 1016, front.whole_pages(1))
        bad, second = front.request(OP_READ, 1024, front.whole_pages(1, 1))
        answers = {response.id: response.status for response in front.ask([first, second])}
        assert answers == {good: RSP_OKAY, bad: RSP_ERROR}
        assert front.peek(0, PAGE_SIZE) == sectors(1016, 8, CONTENT)
    front.close()


@store_in_python
@both_ways
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_b3_a_write_that_fails_is_not_acknowledged(
    env: BlockEnvironment,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    persistent: bool,
    number: int,
) -> None:
    pwritev = os.pwritev

    def full(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        end = 800 * 512
        if offset >= end:
            raise OSError(number, os.strerror(number))
        return pwritev(fd, [buffers[0][: end - offset]], offset)

    front = Blkfront(env, persistent=persistent)
    with connected(front, served), monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        fits, first = front.request(OP_WRITE, 792, front.whole_pages(1))
        fails, second = front.request(OP_WRITE, 800, front.whole_pages(1))
        partly, third = front.request(OP_WRITE, 796, front.whole_pages(1))
        answers = {r.id: r.status for r in front.ask([first, second, third])}
    assert answers == {fits: RSP_OKAY, fails: RSP_ERROR, partly: RSP_ERROR}
    front.close()


@store_in_python
@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError(), OSError("cannot read", "the disk"), OSError(1 << 40, "far")],
    ids=["a bug", "an errno that is text", "an errno that is none"],
)
def test_a_store_with_a_bug_fails_its_request_only(
    served: Served, front: Blkfront, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object) -> int:
        raise error

    with connected(front, served):
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", broken)
            assert front.status(OP_READ, 0, front.whole_pages(1)) == RSP_ERROR
        assert front.read(0, 1) == CONTENT[:PAGE_SIZE]


@store_in_python
def test_a_store_that_keeps_what_it_was_given(
    served: Served, front: Blkfront, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer itself is of no use any more.  A slice of it holds up nothing but the unmap of
    what it shows."""
    kept: list[memoryview] = []
    preadv = os.preadv

    def keep(fd: int, buffers: list[memoryview], offset: int) -> int:
        done = preadv(fd, buffers, offset)
        kept.extend((buffers[0], buffers[0][:512]))
        return done

    with connected(front, served):
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", keep)
            assert front.read(0, 1) == CONTENT[:PAGE_SIZE]
        assert front.read(8, 1) == CONTENT[PAGE_SIZE : 2 * PAGE_SIZE]
    with pytest.raises(ValueError, match="released"):
        len(kept[0])
    assert len(kept[1]) == 512
    assert len(served.context.deferred) == 1
    del kept[:]
    assert served.context.deferred.retry() == 0


def test_b1_a_read_only_disk(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, tmp_path: Path
) -> None:
    image = tmp_path / "cd.img"
    image.write_bytes(CONTENT)
    served = Served(daemon, env, image, devid=51712, mode="r")
    front = Blkfront(env)
    with connected(front, served) as keys:
        assert keys["info"] == 4
        assert front.status(OP_WRITE, 0, front.whole_pages(1)) == RSP_ERROR
        assert front.status(OP_FLUSH_DISKCACHE, 0, front.whole_pages(1)) == RSP_ERROR
        assert front.flush() == RSP_OKAY
        assert front.read(0, 1) == CONTENT[:PAGE_SIZE]
    assert image.read_bytes() == CONTENT
    served.close()
    front.close()
    witness.check()


# ------------------------------------------------------------------ hostile: the ring


@pytest.mark.parametrize("jump", [33, 2**31, 2**32 - 1, 2**32 - 32, 1000])
def test_r1_a_producer_index_beyond_the_ring_closes_the_device(
    served: Served, witness: Witness, front: Blkfront, jump: int
) -> None:
    served.connect(front.keys())
    front.read(0, 1)
    front.scribble(REQ_PROD, front.word(REQ_PROD) + jump)
    front.notify()
    assert isinstance(served.failure(), PeerError)
    witness.check()
    served.disconnect()


def test_r1_a_ring_that_is_mad_from_the_start(
    served: Served, witness: Witness, front: Blkfront
) -> None:
    front.scribble(REQ_PROD, 5000)
    try:
        served.connect(front.keys())
    except PeerError:
        return
    assert isinstance(served.failure(), PeerError)
    witness.check()


@pytest.mark.parametrize("start", [2**32 - 40, 2**31 - 40])
def test_r1_valid_traffic_goes_through_the_wrap(
    env: BlockEnvironment, served: Served, start: int
) -> None:
    front = Blkfront(env, start=start)
    with connected(front, served):
        for turn in range(100):
            assert front.read(turn, 1) == sectors(turn, 8, CONTENT)
    front.close()


@pytest.mark.parametrize("word", [REQ_EVENT, RSP_PROD, RSP_EVENT])
@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1])
def test_r2_indices_that_are_ours_or_hints_do_no_harm(
    served: Served, witness: Witness, front: Blkfront, word: int, value: int
) -> None:
    """The backend keeps its own rsp_prod; rsp_event only chooses whether it notifies."""
    page = front.whole_pages(1)
    with connected(front, served):
        for count in range(1, 31):
            front.scribble(word, value)
            front.ring.put([front.request(OP_READ, 0, page)[1]])
            front.notify()
            eventually(lambda count=count: served.stats()["requests"] == count)
        witness.check()
    assert served.failures == []
    assert served.stats()["errors"] == 0


@pytest.mark.parametrize(
    ("field", "good", "evil"),
    [("operation", 0, 200), ("nr_segments", 1, 255), ("last_sect", 7, 255)],
)
def test_r3_slots_that_change_while_they_are_read(
    served: Served,
    witness: Witness,
    front: Blkfront,
    field: str,
    good: int,
    evil: int,
) -> None:
    """A thread flips one byte of every slot all the time.  Each answer fits one of the two
    versions: what was checked is what was carried out (XSA-155)."""
    offset = {"operation": 0, "nr_segments": 1, "last_sect": 24 + 5}[field]
    size = front.abi.layout.request_size
    slot = front.abi.pack_request(OP_READ, 1, 8, front.whole_pages(1))
    places = range(RING_HEADER + offset, RING_HEADER + size * 32, size)
    with connected(front, served):
        with flipping(front.ring_pages, places, (evil, good)):
            for _ in range(ROUNDS):
                front.send([slot] * 32)
                front.discard(32, served.failed)
        witness.check()
    stats = served.stats()
    assert served.failures == []
    assert stats["requests"] == 32 * ROUNDS == stats["rd_req"] + stats["refused"]
    assert stats["errors"] == stats["refused"]
    assert stats["rd_sect"] == 8 * stats["rd_req"]


@only_in_python
@both_ways
def test_r3_slots_that_turn_evil_once_they_are_checked(
    env: BlockEnvironment, served: Served, monkeypatch: pytest.MonkeyPatch, persistent: bool
) -> None:
    """The race above, won by the guest every time: a second look would see 0xFF."""
    front = Blkfront(env, persistent=persistent)
    parse = Abi.parse

    def parse_then_change(self: Abi, slot: bytes, disk: Disk) -> Request | Indirect | Refusal:
        result = parse(self, slot, disk)
        with front.ring_pages.view(RING_HEADER) as view:
            view[:] = b"\xff" * len(view)
        return result

    with connected(front, served):
        monkeypatch.setattr(Abi, "parse", parse_then_change)
        for turn in range(40):
            ident, slot = front.request(OP_READ, turn, front.whole_pages(MAX_SEGMENTS))
            front.send([slot])
            eventually(lambda turn=turn: served.failures or served.stats()["requests"] > turn)
            assert served.failures == []
            assert front.receive(1) == [Response(ident, OP_READ, RSP_OKAY)]
            assert front.peek(0, MAX_SEGMENTS * PAGE_SIZE) == sectors(turn, 88, CONTENT)
        monkeypatch.undo()
    assert served.failures == []
    front.close()


@pytest.mark.parametrize("abi", [ABI_X86_64, ABI_X86_32], ids=lambda abi: abi.name)
def test_r4_responses_carry_nothing_but_the_response(
    env: BlockEnvironment, served: Served, abi: Abi
) -> None:
    """XSA-216: of a slot full of 0xA5 the response's part is written, padding zero."""
    front = Blkfront(env, abi=abi, persistent=False)
    requests = [
        abi.pack_request(OP_READ, 2**64 - 1, 0, front.whole_pages(1)),
        abi.pack_request(OP_READ, 3, 2**60, front.whole_pages(1)),
        abi.pack_request(200, 4, 0, []),
    ]
    with connected(front, served):
        for index, slot in enumerate(requests):
            front.ask([slot])
            start = RING_HEADER + index * abi.layout.request_size
            with front.ring_pages.view(start, abi.layout.response_size) as view:
                raw = bytes(view)
            status = (RSP_OKAY, RSP_ERROR, RSP_EOPNOTSUPP)[index]
            ident, operation = (2**64 - 1, 3, 4)[index], (OP_READ, OP_READ, 200)[index]
            packed = ident.to_bytes(8, "little") + bytes([operation, 0])
            packed += status.to_bytes(2, "little", signed=True)
            assert raw == packed.ljust(abi.layout.response_size, b"\0")
    front.close()


def test_r5_ids_are_echoed_whatever_they_are(served: Served, front: Blkfront) -> None:
    ids = [0, 2**64 - 1, 7, 7, 7, 2**63]
    page = front.whole_pages(1)
    with connected(front, served):
        answers = front.ask([front.abi.pack_request(OP_READ, ident, 0, page) for ident in ids])
    assert sorted(response.id for response in answers) == sorted(ids)
    assert {response.status for response in answers} == {RSP_OKAY}


@pytest.mark.parametrize(
    "keys",
    [
        {"protocol": "x86_16-abi"},
        {"ring-page-order": "5"},
        {"ring-page-order": "1"},
        {"event-channel": "0"},
        {"event-channel": ""},
        {"ring-ref": "99999999999"},
    ],
    ids=str,
)
def test_r6_r7_keys_that_make_no_sense_leave_nothing_held(
    served: Served, witness: Witness, front: Blkfront, keys: dict[str, str]
) -> None:
    with pytest.raises(PeerError):
        served.connect({**front.keys(), **keys})
    witness.check()


@pytest.mark.parametrize("ref", ["4294967295", "0", "60000"])
def test_r7_a_ring_that_cannot_be_mapped(
    served: Served, witness: Witness, front: Blkfront, ref: str
) -> None:
    with pytest.raises(XenError):
        served.connect({**front.keys(), "ring-ref": ref})
    witness.check()


def test_r7_one_page_of_a_ring_cannot_be_mapped(
    env: BlockEnvironment, served: Served, witness: Witness
) -> None:
    front = Blkfront(env, order=2)
    for page in range(4):
        with pytest.raises(XenError):
            served.connect({**front.keys(), f"ring-ref{page}": "4294967295"})
        witness.check()
    with connected(front, served):
        assert front.read(0, 1) == CONTENT[:PAGE_SIZE]
    front.close()


def test_r7_the_same_page_twice_in_a_ring(env: BlockEnvironment, served: Served) -> None:
    front = Blkfront(env, order=1)
    keys = front.keys()
    with pytest.raises(PeerError, match="twice"):
        served.connect({**keys, "ring-ref1": keys["ring-ref0"]})
    front.close()


@pytest.mark.parametrize("port", [1 << 16, 4294967295])
def test_a_port_that_cannot_be_bound(
    served: Served, witness: Witness, front: Blkfront, port: int
) -> None:
    with pytest.raises(XenError):
        served.connect({**front.keys(), "event-channel": str(port)})
    witness.check()
    with connected(front, served):
        assert front.read(0, 1) == CONTENT[:PAGE_SIZE]


# ------------------------------------------------------------------ hostile: grants


BAD_REFS = (2**32 - 1, 2**31, 60000, 0)


@both_ways
@pytest.mark.parametrize("position", [0, 5, 10])
@pytest.mark.parametrize("operation", [OP_READ, OP_WRITE])
def test_g1_a_bad_reference_fails_its_request_only(
    env: BlockEnvironment,
    served: Served,
    witness: Witness,
    persistent: bool,
    position: int,
    operation: int,
) -> None:
    front = Blkfront(env, data_pages=33, persistent=persistent)
    segments = front.whole_pages(MAX_SEGMENTS)
    with connected(front, served):
        for ref, order in product(BAD_REFS, ([0, 1, 2], [1, 0, 2], [0, 2, 1])):
            segments[position] = (ref, 0, 7)
            slots = [
                front.request(OP_READ, 0, front.whole_pages(MAX_SEGMENTS, 11)),
                front.request(operation, 88, segments),
                front.request(OP_READ, 176, front.whole_pages(MAX_SEGMENTS, 22)),
            ]
            front.poke(0, b"\xc5" * 33 * PAGE_SIZE)
            answers = front.ask([slots[index][1] for index in order])
            statuses = {response.id: response.status for response in answers}
            assert [statuses[ident] for ident, _ in slots] == [RSP_OKAY, RSP_ERROR, RSP_OKAY]
            assert front.peek(11 * PAGE_SIZE, 11 * PAGE_SIZE) == sectors(0, 88, CONTENT)
            assert front.peek(22 * PAGE_SIZE, 11 * PAGE_SIZE) == sectors(176, 88, CONTENT)
        witness.check()
    assert served.image.read_bytes() == CONTENT
    front.close()


@both_ways
def test_g1_a_page_granted_read_only_cannot_be_read_into(
    env: BlockEnvironment, served: Served, persistent: bool
) -> None:
    front = Blkfront(env, persistent=persistent)
    frozen = front.share.share(env.back_domid, 1, writable=False)
    with frozen.view() as view:
        view[:] = b"\xc5" * PAGE_SIZE
    segment = [(frozen.refs[0], 0, 7)]
    with connected(front, served):
        assert front.status(OP_READ, 0, segment) == RSP_ERROR
        with frozen.view() as view:
            assert bytes(view) == b"\xc5" * PAGE_SIZE
        # To write from it to the disk is what it may be used for.
        assert front.status(OP_WRITE, 0, segment) == RSP_OKAY
    assert served.image.read_bytes()[:PAGE_SIZE] == b"\xc5" * PAGE_SIZE
    frozen.close()
    front.close()


@both_ways
def test_g1_a_page_granted_to_another_domain(
    env: BlockEnvironment, served: Served, persistent: bool
) -> None:
    front = Blkfront(env, persistent=persistent)
    stranger = front.share.share(env.stranger_domid, 1)
    with connected(front, served):
        for operation in (OP_READ, OP_WRITE):
            assert front.status(operation, 0, [(stranger.refs[0], 0, 7)]) == RSP_ERROR
        assert front.read(0, 1) == CONTENT[:PAGE_SIZE]
    assert served.image.read_bytes() == CONTENT
    stranger.close()
    front.close()


def test_g3_a_frontend_that_goes_while_its_pages_are_mapped(
    env: BlockEnvironment, served: Served, witness: Witness
) -> None:
    """Revoked while persistent: the backend lets go of everything on disconnect."""
    front = Blkfront(env)
    served.connect(front.keys())
    front.read(0, MAX_SEGMENTS)
    assert served.stats()["grants_mapped"] == MAX_SEGMENTS
    front.close()
    witness.check()
    served.disconnect()
    assert served.stats()["grants_unmapped"] == MAX_SEGMENTS


@only_in_python
def test_g4_the_cache_is_bounded_and_evicts_the_oldest(
    env: BlockEnvironment, served: Served, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 24
    monkeypatch.setattr(datapath, "GrantCache", partial(GrantCache, max_pages=bound))
    front = Blkfront(env, data_pages=128)
    with connected(front, served):
        for turn in range(3):
            for page in range(0, 128, 8):
                segments = front.whole_pages(8, page)
                front.poke(page * PAGE_SIZE, b"\xc5" * 8 * PAGE_SIZE)
                assert front.status(OP_READ, page + turn, segments) == RSP_OKAY
                got = front.peek(page * PAGE_SIZE, 8 * PAGE_SIZE)
                assert got == sectors(page + turn, 64, CONTENT)
                stats = served.stats()
                assert stats["grants_mapped"] - stats["grants_unmapped"] <= bound
        # More in one batch than may be mapped at all: the rest is copied.
        slots = [front.request(OP_READ, page, front.whole_pages(8, page))[1]
                 for page in range(0, 128, 8)]  # fmt: skip
        assert {response.status for response in front.ask(slots)} == {RSP_OKAY}
        for page in range(0, 128, 8):
            assert front.peek(page * PAGE_SIZE, 8 * PAGE_SIZE) == sectors(page, 64, CONTENT)
        witness.check()
    stats = served.stats()
    assert stats["grants_mapped"] == stats["grants_unmapped"] > 3 * 128 - bound
    assert stats["grants_copied"] > 0
    front.close()


@both_ways
def test_g5_a_page_in_two_segments_and_a_ring_page_as_data(
    env: BlockEnvironment, served: Served, witness: Witness, persistent: bool
) -> None:
    front = Blkfront(env, persistent=persistent)
    with connected(front, served):
        twice = [(front.refs[0], 0, 3), (front.refs[0], 4, 7), (front.refs[0], 0, 7)]
        assert front.status(OP_READ, 16, twice) == RSP_OKAY
        assert front.peek(0, PAGE_SIZE) == sectors(24, 8, CONTENT)
        # What the ring says lands on the disk: the guest's own bytes on the guest's own disk.
        ring = [(front.ring_pages.refs[0], 1, 7)]
        assert front.status(OP_WRITE, 32, ring) == RSP_OKAY
        # And the disk lands in the ring: slots that nobody has published.
        assert front.status(OP_READ, 32, ring) == RSP_OKAY
        assert front.read(48, 1) == sectors(48, 8, CONTENT)
        witness.check()
    front.close()


# ------------------------------------------------------------------ hostile: requests


@both_ways
def test_b1_requests_that_make_no_sense(
    env: BlockEnvironment, served: Served, witness: Witness, persistent: bool
) -> None:
    front = Blkfront(env, persistent=persistent)
    page = front.whole_pages(1)
    full = front.whole_pages(MAX_SEGMENTS)
    pack = front.abi.pack_request
    cases = [
        (pack(OP_READ, 0, 0, [(front.refs[0], 5, 4)]), RSP_ERROR),
        (pack(OP_READ, 1, 0, [(front.refs[0], 0, 8)]), RSP_ERROR),
        (pack(OP_READ, 2, 0, [(front.refs[0], 255, 255)]), RSP_ERROR),
        (pack(OP_READ, 3, 2**64 - 8, page), RSP_ERROR),
        (pack(OP_WRITE, 4, 2**64 - 1, page), RSP_ERROR),
        (pack(OP_READ, 5, 2**55, page), RSP_ERROR),
        (pack(OP_WRITE, 6, DISK_SECTORS, page), RSP_ERROR),
        (pack(OP_WRITE, 7, DISK_SECTORS - 7, page), RSP_ERROR),
        (pack(OP_READ, 8, DISK_SECTORS - 87, full), RSP_ERROR),
        (pack(OP_READ, 9, 0, full, nr_segments=0), RSP_ERROR),
        (pack(OP_WRITE, 10, 0, full, nr_segments=0), RSP_ERROR),
        (pack(OP_READ, 11, 0, full, nr_segments=12), RSP_ERROR),
        (pack(OP_WRITE, 12, 0, full, nr_segments=255), RSP_ERROR),
        (pack(OP_FLUSH_DISKCACHE, 13, 0, full, nr_segments=12), RSP_ERROR),
        (pack(OP_WRITE_BARRIER, 14, 0, full, nr_segments=12), RSP_ERROR),
        (front.abi.pack_discard(15, 2**64 - 1, 2), RSP_ERROR),
        (pack(OP_INDIRECT, 16, 0, page), RSP_ERROR),
        (pack(4, 17, 0, page), RSP_EOPNOTSUPP),
        *((pack(code, code + 11, 0, page), RSP_EOPNOTSUPP) for code in range(7, 256)),
    ]  # fmt: skip
    with connected(front, served):
        good, slot = 10**6, pack(OP_READ, 10**6, DISK_SECTORS - 8, page)
        for start in range(0, len(cases), 10):
            some = cases[start : start + 10]
            answers = {r.id: r.status for r in front.ask([slot, *(case for case, _ in some)])}
            expected = {start + index: status for index, (_, status) in enumerate(some)}
            assert answers == {good: RSP_OKAY, **expected}
        witness.check()
    assert served.image.read_bytes() == CONTENT
    assert served.stats()["refused"] == len(cases)
    front.close()


@both_ways
def test_random_slots_never_do_harm(
    env: BlockEnvironment, served: Served, witness: Witness, persistent: bool
) -> None:
    """Good requests of any operation with a few bytes changed at random.

    References stay: over loopback, those of the witness are as good as our own.
    """
    rng = random.Random(4)
    front = Blkfront(env, persistent=persistent)
    fields = [*range(1, 24), *(24 + 8 * k + at for k in range(11) for at in range(4, 8))]
    with connected(front, served):
        for _ in range(40):
            slots: list[bytes] = []
            for _ in range(8):
                others = rng.choice([*range(2, OP_INDIRECT), *range(OP_INDIRECT + 1, 256)])
                operation = rng.choice([OP_READ, OP_FLUSH_DISKCACHE, others])
                sector = rng.randrange(2 * DISK_SECTORS)
                slot = bytearray(front.request(operation, sector, front.whole_pages(3))[1])
                for _ in range(rng.randrange(4)):
                    slot[rng.choice(fields)] = rng.randrange(256)
                slots.append(bytes(slot))
            front.ask(slots)
        witness.check()
        assert front.read(0, 1) == sectors(0, 8, served.image.read_bytes())
    assert served.failures == []
    front.close()


def test_a_frontend_that_never_stops_is_left_on_a_disconnect(
    served: Served, witness: Witness, front: Blkfront
) -> None:
    """A thread keeps the ring full; the disconnect still returns, and others are served."""
    stop = threading.Event()
    page = front.whole_pages(1)

    def flood() -> None:
        while not stop.is_set():
            front.ring.take()
            front.send([front.request(OP_READ, 0, page)[1] for _ in range(front.ring.free)])

    served.connect(front.keys())
    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        witness.check()
        served.disconnect()
    finally:
        stop.set()
        flooder.join(PATIENCE)
    assert served.failures == []


def test_the_native_abi_is_the_default(served: Served, front: Blkfront) -> None:
    keys = {name: value for name, value in front.keys().items() if name != "protocol"}
    assert front.abi is ABI_NATIVE
    with connected(front, served, keys):
        assert front.read(0, 1) == CONTENT[:PAGE_SIZE]
