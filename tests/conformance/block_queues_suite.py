# SPDX-License-Identifier: MIT
"""A disk with several queues, honest and hostile: goes with `block_suite`, whose fixtures it
uses."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

import pytest

from conformance.block_front import (
    PATIENCE,
    Blkfront,
    BlockEnvironment,
    Daemon,
    Served,
    Witness,
    connected,
    keys_of,
    sectors,
)
from conformance.block_suite import CONTENT, DISK_SECTORS, REQ_PROD, both_ways, store_in_python
from xenpy.drivers.block.protocol import (
    ABI_X86_32,
    ABI_X86_64,
    OP_WRITE,
    RSP_ERROR,
    RSP_OKAY,
    Abi,
)
from xenpy.errors import PeerError, XenError
from xenpy.types import PAGE_SIZE

QUEUES = 4


@pytest.fixture
def queued(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, tmp_path: Path, tier: str
) -> Iterator[Served]:
    """A disk that offers several queues, whatever this machine's default is."""
    image = tmp_path / "queued.img"
    image.write_bytes(CONTENT)
    served = Served(daemon, env, image, 51712, tier=tier, options={"queues": str(QUEUES)})
    yield served
    served.close()
    witness.check()


@contextmanager
def queue_fronts(
    env: BlockEnvironment,
    count: int,
    *,
    order: int = 0,
    abi: Abi = ABI_X86_64,
    persistent: bool = True,
) -> Iterator[list[Blkfront]]:
    with ExitStack() as stack:
        fronts: list[Blkfront] = []
        for _ in range(count):
            front = Blkfront(env, order=order, abi=abi, persistent=persistent)
            stack.callback(front.close)
            fronts.append(front)
        yield fronts


# ------------------------------------------------------------------ it works


@both_ways
@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("count", [2, QUEUES])
@pytest.mark.parametrize("abi", [ABI_X86_64, ABI_X86_32], ids=lambda abi: abi.name)
def test_every_queue_is_the_same_disk(
    env: BlockEnvironment, queued: Served, abi: Abi, count: int, order: int, persistent: bool
) -> None:
    expected = b"".join(bytes([number + 1]) * PAGE_SIZE for number in range(count))
    with (
        queue_fronts(env, count, order=order, abi=abi, persistent=persistent) as fronts,
        connected(fronts[0], queued, keys_of(fronts)),
    ):
        for number, front in enumerate(fronts):
            front.write(8 * number, bytes([number + 1]) * PAGE_SIZE)
        for front in fronts:
            assert front.flush() == RSP_OKAY
            assert front.read(0, count) == expected
        stats = queued.stats()
    assert (stats["wr_req"], stats["f_req"], stats["rd_req"]) == (count, count, count)
    assert stats["grants_mapped"] == (count * count if persistent else 0)
    assert queued.image.read_bytes() == expected + CONTENT[len(expected) :]


def test_what_is_offered_is_what_the_operator_says(queued: Served) -> None:
    assert queued.features["multi-queue-max-queues"] == QUEUES


def test_one_queue_in_a_directory_of_its_own(env: BlockEnvironment, queued: Served) -> None:
    with queue_fronts(env, 1) as fronts, connected(fronts[0], queued, keys_of(fronts)):
        assert fronts[0].read(8, 2) == sectors(8, 16, CONTENT)


def test_a_frontend_may_come_back_with_another_number_of_queues(
    env: BlockEnvironment, queued: Served
) -> None:
    """What it counted before is not lost, and its old keys are no hindrance."""
    left: dict[str, str] = {}
    for turn, count in enumerate((1, 3, 2, QUEUES, 1)):
        with queue_fronts(env, count) as fronts:
            keys = keys_of(fronts) if count > 1 else fronts[0].keys()
            left.update(keys, **{"multi-queue-num-queues": str(count)})
            with connected(fronts[0], queued, left):
                fronts[-1].write(8 * turn, bytes([turn]) * PAGE_SIZE)
    assert queued.stats()["wr_req"] == 5
    assert queued.image.read_bytes()[: 5 * PAGE_SIZE] == b"".join(
        bytes([turn]) * PAGE_SIZE for turn in range(5)
    )


@both_ways
def test_queues_that_are_busy_at_the_same_time(
    env: BlockEnvironment, queued: Served, persistent: bool
) -> None:
    """Each writes, discards and reads its own part of the disk, in threads of their own."""
    part = DISK_SECTORS // QUEUES

    def work(number: int, front: Blkfront) -> bytes:
        rng = random.Random(number)
        model = bytearray(sectors(part * number, part, CONTENT))
        for turn in range(40):
            page = rng.randrange(part // 8 - 2)
            data = rng.randbytes(2 * PAGE_SIZE)
            front.write(part * number + 8 * page, data)
            model[page * PAGE_SIZE : (page + 2) * PAGE_SIZE] = data
            if turn % 8 == 0:
                assert front.discard_sectors(part * number + 8 * page, 3) == RSP_OKAY
                model[page * PAGE_SIZE : page * PAGE_SIZE + 3 * 512] = bytes(3 * 512)
                assert front.flush() == RSP_OKAY
            look = rng.randrange(part // 8 - 4)
            got = front.read(part * number + 8 * look, 4)
            assert got == model[look * PAGE_SIZE : (look + 4) * PAGE_SIZE]
        return bytes(model)

    with queue_fronts(env, QUEUES, persistent=persistent) as fronts:
        with connected(fronts[0], queued, keys_of(fronts)), ThreadPoolExecutor(QUEUES) as pool:
            parts = list(pool.map(work, range(QUEUES), fronts))
        stats = queued.stats()
    assert queued.image.read_bytes() == b"".join(parts)
    assert (stats["wr_req"], stats["rd_req"]) == (40 * QUEUES, 40 * QUEUES)
    assert (stats["ds_req"], stats["f_req"], stats["errors"]) == (5 * QUEUES, 5 * QUEUES, 0)


def test_what_is_in_every_ring_at_a_disconnect_is_answered(
    env: BlockEnvironment, queued: Served
) -> None:
    with queue_fronts(env, QUEUES) as fronts:
        queued.connect(keys_of(fronts))
        for front in fronts:
            page = front.whole_pages(1)
            front.send([front.request(OP_WRITE, place, page)[1] for place in range(20)])
        queued.disconnect()
        for front in fronts:
            assert len(front.receive(20)) == 20


@store_in_python
def test_a_flush_that_failed_in_one_queue_fails_in_all(
    env: BlockEnvironment, queued: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: int) -> None:
        raise OSError(errno.EIO, "lost")

    with queue_fronts(env, 2) as fronts, connected(fronts[0], queued, keys_of(fronts)):
        assert fronts[1].flush() == RSP_OKAY
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", lost)
            assert fronts[0].flush() == RSP_ERROR
        assert fronts[1].flush() == RSP_ERROR
        assert queued.stats()["flushes_failed"] == 2


# ------------------------------------------------------------------ hostile


def test_r6_keys_of_queues_that_make_no_sense(
    env: BlockEnvironment, queued: Served, witness: Witness
) -> None:
    with queue_fronts(env, 2) as fronts:
        keys = keys_of(fronts)
        for change in (
            {"multi-queue-num-queues": "0"},
            {"multi-queue-num-queues": "3"},
            {"multi-queue-num-queues": str(QUEUES + 1)},
            {"multi-queue-num-queues": "4294967295"},
            {"multi-queue-num-queues": "-1"},
            {"queue-1/ring-ref": keys["queue-0/ring-ref"]},
            {"queue-1/event-channel": keys["queue-0/event-channel"]},
            {"queue-1/event-channel": "0"},
            {"queue-1/ring-ref": ""},
            {"ring-page-order": "1"},
        ):
            with pytest.raises(PeerError):
                queued.connect({**keys, **change})
        witness.check()
        with connected(fronts[0], queued, keys):
            assert fronts[1].read(0, 1) == CONTENT[:PAGE_SIZE]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("key", ["ring-ref", "event-channel"])
def test_r7_one_queue_of_several_that_cannot_be_opened(
    env: BlockEnvironment, queued: Served, witness: Witness, number: int, key: str
) -> None:
    """The others, which could be, are let go of at once."""
    with queue_fronts(env, 3) as fronts:
        keys = keys_of(fronts)
        before = env.census()
        with pytest.raises(XenError):
            queued.connect({**keys, f"queue-{number}/{key}": "4294967295"})
        assert env.census() == before
        witness.check()
        with connected(fronts[0], queued, keys):
            assert fronts[number].read(0, 1) == CONTENT[:PAGE_SIZE]


def test_r1_one_queue_gone_mad_closes_the_device_once(
    env: BlockEnvironment, queued: Served, witness: Witness
) -> None:
    with queue_fronts(env, QUEUES) as fronts:
        queued.connect(keys_of(fronts))
        for front in fronts[1:]:
            front.scribble(REQ_PROD, 5000)
            front.notify()
        assert isinstance(queued.failure(), PeerError)
        # Until the framework closes the device, the queue that is sane is served.
        assert fronts[0].read(8, 1) == sectors(8, 8, CONTENT)
        witness.check()
        queued.disconnect()
        assert len(queued.failures) == 1
    # It may come back.
    with queue_fronts(env, 2) as fronts, connected(fronts[0], queued, keys_of(fronts)):
        assert fronts[1].read(0, 1) == CONTENT[:PAGE_SIZE]


@store_in_python
def test_a_store_that_hangs_in_one_queue_holds_up_no_other(
    env: BlockEnvironment, queued: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disconnect waits for it, as for any I/O under way."""
    hangs, go_on = Event(), Event()
    pwritev = os.pwritev

    def slow(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset == 0:
            hangs.set()
            assert go_on.wait(PATIENCE)
        return pwritev(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", slow)
    with queue_fronts(env, 2) as fronts:
        with connected(fronts[0], queued, keys_of(fronts)):
            fronts[0].send([fronts[0].request(OP_WRITE, 0, fronts[0].whole_pages(1))[1]])
            assert hangs.wait(PATIENCE)
            fronts[1].write(80, b"x" * PAGE_SIZE)
            assert fronts[1].read(80, 1) == b"x" * PAGE_SIZE
            go_on.set()
        assert len(fronts[0].receive(1)) == 1
