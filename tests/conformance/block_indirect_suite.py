# SPDX-License-Identifier: MIT
"""Indirect requests, honest and hostile: goes with `block_suite`, whose fixtures it uses."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from conformance.block_front import (
    Blkfront,
    BlockEnvironment,
    Daemon,
    Response,
    Served,
    Witness,
    connected,
    eventually,
    flipping,
    sectors,
)
from conformance.block_suite import (
    BAD_REFS,
    CONTENT,
    DISK_SECTORS,
    ROUNDS,
    both_ways,
    only_in_python,
)
from xenpy.drivers.block import datapath
from xenpy.drivers.block.grant_cache import GrantCache
from xenpy.drivers.block.protocol import (
    ABI_X86_32,
    ABI_X86_64,
    MAX_INDIRECT_SEGMENTS,
    OP_READ,
    OP_WRITE,
    RSP_ERROR,
    RSP_OKAY,
    Abi,
    Disk,
    Indirect,
    Refusal,
    Request,
)
from xenpy.types import PAGE_SIZE

MOST = MAX_INDIRECT_SEGMENTS


def large_front(
    env: BlockEnvironment, *, persistent: bool, abi: Abi = ABI_X86_64, pages: int = MOST
) -> Blkfront:
    return Blkfront(env, abi=abi, data_pages=pages, table_pages=2, persistent=persistent)


# ------------------------------------------------------------------ it works


@both_ways
@pytest.mark.parametrize("count", [1, 12, 33, MOST])
@pytest.mark.parametrize("abi", [ABI_X86_64, ABI_X86_32], ids=lambda abi: abi.name)
def test_a_large_request_is_carried_out(
    env: BlockEnvironment, served: Served, abi: Abi, count: int, persistent: bool
) -> None:
    front = large_front(env, abi=abi, persistent=persistent, pages=count)
    start = DISK_SECTORS - 8 * count
    with connected(front, served):
        assert front.indirect_status(OP_READ, 0, front.whole_pages(count)) == RSP_OKAY
        assert front.peek(0, count * PAGE_SIZE) == sectors(0, 8 * count, CONTENT)
        pattern = random.Random(2).randbytes(count * PAGE_SIZE)
        front.poke(0, pattern)
        assert front.indirect_status(OP_WRITE, start, front.whole_pages(count)) == RSP_OKAY
        stats = served.stats()
    assert served.image.read_bytes() == CONTENT[: start * 512] + pattern
    assert (stats["indirect"], stats["requests"], stats["errors"]) == (2, 2, 0)
    assert (stats["rd_req"], stats["wr_req"]) == (1, 1)
    assert (stats["rd_sect"], stats["wr_sect"]) == (8 * count, 8 * count)
    # The page with the segments stays mapped as the data does.
    assert (stats["grants_mapped"], stats["grants_copied"]) == (
        (count + 1, 0) if persistent else (0, 2 * count + 2)
    )
    front.close()


@both_ways
def test_parts_of_pages_in_a_large_request(
    env: BlockEnvironment, served: Served, persistent: bool
) -> None:
    rng = random.Random(5)
    front = large_front(env, persistent=persistent)
    bounds = [sorted((rng.randrange(8), rng.randrange(8))) for _ in range(MOST)]
    segments = [(ref, first, last) for ref, (first, last) in zip(front.refs, bounds, strict=True)]
    with connected(front, served):
        front.poke(0, b"\xc5" * MOST * PAGE_SIZE)
        assert front.indirect_status(OP_READ, 7, segments) == RSP_OKAY
    expected, at = bytearray(b"\xc5" * MOST * PAGE_SIZE), 7
    for page, (first, last) in enumerate(bounds):
        count = last - first + 1
        start = page * PAGE_SIZE + first * 512
        expected[start : start + count * 512] = sectors(at, count, CONTENT)
        at += count
    assert front.peek(0, MOST * PAGE_SIZE) == bytes(expected)
    front.close()


@only_in_python
@both_ways
def test_a_batch_of_more_than_may_be_under_way_is_served_in_pieces(
    env: BlockEnvironment, served: Served, monkeypatch: pytest.MonkeyPatch, persistent: bool
) -> None:
    monkeypatch.setattr(datapath, "POOL_PAGES", MOST)
    front = Blkfront(env, data_pages=MOST, table_pages=4, persistent=persistent)
    front.poke(0, b"".join(bytes([page]) * PAGE_SIZE for page in range(MOST)))
    pieces = ((0, MOST), (0, 1), (1, MOST - 1), (100, 30))
    slots = [
        front.indirect(OP_WRITE, 8 * first, front.whole_pages(count, first), table=table)[1]
        for table, (first, count) in enumerate(pieces)
    ]
    front.send([*slots, front.request(OP_READ, 80, front.whole_pages(1))[1]])
    with connected(front, served):
        assert {response.status for response in front.receive(5)} == {RSP_OKAY}
        assert served.stats()["batches"] == 1
    assert front.peek(0, PAGE_SIZE) == b"\x0a" * PAGE_SIZE
    pages = b"".join(bytes([page]) * PAGE_SIZE for page in range(MOST))
    assert served.image.read_bytes() == pages
    front.close()


@only_in_python
def test_g4_large_requests_keep_within_the_bound_of_mapped_pages(
    env: BlockEnvironment, served: Served, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = 64
    monkeypatch.setattr(datapath, "GrantCache", partial(GrantCache, max_pages=bound))
    front = large_front(env, persistent=True)
    with connected(front, served):
        for turn in range(4):
            for first, count in ((0, MOST), (8 * turn, 48), (200, 10)):
                front.poke(first * PAGE_SIZE, b"\xc5" * count * PAGE_SIZE)
                segments = front.whole_pages(count, first)
                assert front.indirect_status(OP_READ, 0, segments) == RSP_OKAY
                got = front.peek(first * PAGE_SIZE, count * PAGE_SIZE)
                assert got == sectors(0, 8 * count, CONTENT)
                stats = served.stats()
                assert stats["grants_mapped"] - stats["grants_unmapped"] <= bound
        witness.check()
    stats = served.stats()
    assert stats["grants_mapped"] == stats["grants_unmapped"] > 0
    assert stats["grants_copied"] > 0
    front.close()


@both_ways
def test_segments_in_a_page_that_is_granted_read_only(
    env: BlockEnvironment, served: Served, persistent: bool
) -> None:
    """It cannot be mapped as data pages are, and need not be."""
    front = large_front(env, persistent=persistent, pages=16)
    frozen = front.share.share(env.back_domid, 1, writable=False)
    raw = front.abi.pack_segments(front.whole_pages(16))
    with frozen.view(0, len(raw)) as view:
        view[:] = raw
    slot = front.abi.pack_indirect(OP_READ, 7, 0, 16, frozen.refs)
    with connected(front, served):
        assert front.ask([slot]) == [Response(7, OP_READ, RSP_OKAY)]
    assert front.peek(0, 16 * PAGE_SIZE) == sectors(0, 128, CONTENT)
    frozen.close()
    front.close()


# ------------------------------------------------------------------ hostile


@both_ways
def test_b2_indirect_requests_that_make_no_sense(
    env: BlockEnvironment, served: Served, witness: Witness, persistent: bool
) -> None:
    front = large_front(env, persistent=persistent)
    assert front.tables is not None
    table, other = front.tables.refs
    with front.tables.view(0, PAGE_SIZE) as view:
        view[:] = front.abi.pack_segments(front.whole_pages(MOST)) * 2
    pack = front.abi.pack_indirect
    cases = [
        *((OP_READ, 0, count, [table] * 8)
          for count in (0, 257, 511, 512, 513, 2048, 2049, 4096, 65535)),
        *((operation, 0, 16, [table]) for operation in (*range(2, 8), 128, 255)),
        *((OP_READ, sector, 16, [table])
          for sector in (DISK_SECTORS - 127, DISK_SECTORS, 2**55, 2**64 - 128, 2**64 - 1)),
        *((OP_WRITE, 0, 16, [ref]) for ref in BAD_REFS),
        *((OP_READ, 0, 16, [ref]) for ref in BAD_REFS),
    ]  # fmt: skip
    with connected(front, served):
        for start in range(0, len(cases), 8):
            some = cases[start : start + 8]
            slots = [
                pack(operation, start + number, sector, count, refs)
                for number, (operation, sector, count, refs) in enumerate(some)
            ]
            # A good one on either side.
            good = [
                pack(OP_READ, 10**6, 0, 16, [table]),
                pack(OP_WRITE, 10**6 + 1, 0, 16, [table, other, *BAD_REFS]),
            ]
            front.poke(0, CONTENT[: 16 * PAGE_SIZE])
            answers = {(r.id, r.operation): r.status for r in front.ask([good[0], *slots, good[1]])}
            expected = {
                (start + number, operation): RSP_ERROR
                for number, (operation, *_) in enumerate(some)
            }
            assert answers == {
                **expected,
                (10**6, OP_READ): RSP_OKAY,
                (10**6 + 1, OP_WRITE): RSP_OKAY,
            }
        witness.check()
    assert served.image.read_bytes() == CONTENT
    assert served.stats()["refused"] == len(cases)
    front.close()


@both_ways
@pytest.mark.parametrize("bounds", [(1, 0), (7, 6), (0, 8), (255, 255)], ids=str)
def test_b2_one_segment_of_many_that_is_not_in_a_page(
    env: BlockEnvironment, served: Served, persistent: bool, bounds: tuple[int, int]
) -> None:
    front = large_front(env, persistent=persistent)
    with connected(front, served):
        for position in (0, 128, MOST - 1):
            segments = front.whole_pages(MOST)
            segments[position] = (front.refs[position], *bounds)
            for operation in (OP_READ, OP_WRITE):
                assert front.indirect_status(operation, 0, segments) == RSP_ERROR
    assert served.image.read_bytes() == CONTENT
    front.close()


@both_ways
@pytest.mark.parametrize("position", [0, 128, MOST - 1])
def test_b2_one_page_of_many_that_is_not_granted(
    env: BlockEnvironment, served: Served, witness: Witness, persistent: bool, position: int
) -> None:
    front = large_front(env, persistent=persistent)
    front.poke(0, b"\xc5" * MOST * PAGE_SIZE)
    with connected(front, served):
        for ref in BAD_REFS:
            segments = front.whole_pages(MOST)
            segments[position] = (ref, 0, 7)
            bad, slot = front.indirect(OP_WRITE, 0, segments)
            good, other = front.request(OP_READ, 8, front.whole_pages(1, 1))
            answers = {r.id: r.status for r in front.ask([slot, other])}
            assert answers == {bad: RSP_ERROR, good: RSP_OKAY}
            assert front.peek(PAGE_SIZE, PAGE_SIZE) == sectors(8, 8, CONTENT)
        witness.check()
    assert served.image.read_bytes() == CONTENT
    front.close()


@both_ways
def test_b2_segments_in_a_page_of_another_domain_s_or_of_the_data(
    env: BlockEnvironment, served: Served, persistent: bool
) -> None:
    front = large_front(env, persistent=persistent, pages=16)
    stranger = front.share.share(env.stranger_domid, 1)
    pack = front.abi.pack_indirect
    raw = front.abi.pack_segments(front.whole_pages(16))
    front.poke(0, raw)
    with connected(front, served):
        assert front.ask([pack(OP_READ, 1, 0, 16, stranger.refs)]) == [
            Response(1, OP_READ, RSP_ERROR)
        ]
        # The data lands on the segments that brought it: they have been copied by then.
        assert front.ask([pack(OP_READ, 2, 0, 16, front.refs[:1])]) == [
            Response(2, OP_READ, RSP_OKAY)
        ]
        assert front.peek(0, 16 * PAGE_SIZE) == sectors(0, 128, CONTENT)
    stranger.close()
    front.close()


def test_b1_large_requests_to_a_read_only_disk(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, tmp_path: Path
) -> None:
    image = tmp_path / "cd.img"
    image.write_bytes(CONTENT)
    served = Served(daemon, env, image, devid=51712, mode="r")
    front = large_front(env, persistent=True, pages=16)
    with connected(front, served):
        assert front.indirect_status(OP_WRITE, 0, front.whole_pages(16)) == RSP_ERROR
        assert front.indirect_status(OP_READ, 0, front.whole_pages(16)) == RSP_OKAY
        witness.check()
    assert image.read_bytes() == CONTENT
    served.close()
    front.close()


@only_in_python
@both_ways
def test_b2_segments_that_turn_evil_once_they_are_copied(
    env: BlockEnvironment, served: Served, monkeypatch: pytest.MonkeyPatch, persistent: bool
) -> None:
    """The race below, won by the guest every time: a second look would see 0xFF."""
    front = large_front(env, persistent=persistent)
    resolve = Abi.resolve

    def change() -> None:
        assert front.tables is not None
        with front.tables.view() as view:
            view[:] = b"\xff" * len(view)

    def change_and_resolve(
        self: Abi, indirect: Indirect, table: bytes, disk: Disk
    ) -> Request | Refusal:
        change()
        result = resolve(self, indirect, table, disk)
        change()
        return result

    monkeypatch.setattr(Abi, "resolve", change_and_resolve)
    with connected(front, served):
        for turn in range(20):
            front.poke(0, b"\xc5" * 200 * PAGE_SIZE)
            assert front.indirect_status(OP_READ, turn, front.whole_pages(200)) == RSP_OKAY
            assert front.peek(0, 200 * PAGE_SIZE) == sectors(turn, 1600, CONTENT)
    assert served.failures == []
    front.close()


@both_ways
@pytest.mark.parametrize(("at", "good", "evil"), [(5, 7, 255), (4, 0, 200), (3, 0, 255)])
def test_r3_segments_that_change_while_they_are_read(
    env: BlockEnvironment,
    served: Served,
    witness: Witness,
    persistent: bool,
    at: int,
    good: int,
    evil: int,
) -> None:
    """A thread flips one byte of every segment all the time: last_sect, first_sect, gref.
    Each answer fits what was checked (XSA-155)."""
    front = large_front(env, persistent=persistent)
    _, slot = front.indirect(OP_READ, 8, front.whole_pages(64))
    assert front.tables is not None
    with connected(front, served):
        with flipping(front.tables, range(at, 64 * 8, 8), (evil, good)):
            for _ in range(ROUNDS):
                front.send([slot] * 8)
                front.discard(8, served.failed)
        witness.check()
    stats = served.stats()
    assert served.failures == []
    assert stats["requests"] == stats["indirect"] == 8 * ROUNDS
    assert stats["rd_req"] + stats["refused"] == 8 * ROUNDS
    assert stats["rd_sect"] == 512 * (stats["rd_req"] - stats["errors"] + stats["refused"])
    front.close()


@both_ways
def test_random_tables_never_do_harm(
    env: BlockEnvironment, served: Served, witness: Witness, persistent: bool
) -> None:
    """Good indirect requests with a few bytes changed at random, in the slot and in the
    segments.  References stay: over loopback, those of the witness are as good as our own."""
    rng = random.Random(6)
    front = large_front(env, persistent=persistent)
    assert front.tables is not None
    in_table = [8 * number + at for number in range(64) for at in range(4, 8)]
    with connected(front, served):
        for _ in range(60):
            sector = rng.randrange(2 * DISK_SECTORS)
            number = rng.choice([1, 64, rng.randrange(65)])
            _, slot = front.indirect(OP_READ, sector, front.whole_pages(64), nr_segments=number)
            changed = bytearray(slot)
            for _ in range(rng.randrange(3)):
                changed[rng.choice([1, *range(8, 26)])] = rng.randrange(256)
            with front.tables.view(0, PAGE_SIZE) as view:
                for _ in range(rng.randrange(3)):
                    view[rng.choice(in_table)] = rng.randrange(256)
            front.ask([bytes(changed)])
        witness.check()
        assert front.read(0, 1) == sectors(0, 8, served.image.read_bytes())
    assert served.failures == []
    eventually(lambda: served.stats()["indirect"] > 0)
    front.close()
