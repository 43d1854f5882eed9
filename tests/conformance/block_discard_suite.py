# SPDX-License-Identifier: MIT
"""WRITE_BARRIER and DISCARD, honest and hostile: goes with `block_suite`, whose fixtures it
uses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from conformance.block_front import (
    Blkfront,
    BlockEnvironment,
    Daemon,
    Served,
    Witness,
    calls_of_io,
    connected,
    sectors,
)
from conformance.block_suite import CONTENT, DISK_SECTORS, both_ways, store_in_python
from xenpy.drivers.block.protocol import (
    ABI_X86_32,
    ABI_X86_64,
    DISCARD_SECURE,
    OP_READ,
    OP_WRITE,
    OP_WRITE_BARRIER,
    RSP_EOPNOTSUPP,
    RSP_ERROR,
    RSP_OKAY,
    Abi,
)
from xenpy.types import PAGE_SIZE

both_abis = pytest.mark.parametrize("abi", [ABI_X86_64, ABI_X86_32], ids=lambda abi: abi.name)


# ------------------------------------------------------------------ WRITE_BARRIER


@both_ways
@both_abis
def test_a_barrier_writes_its_segments(
    env: BlockEnvironment, served: Served, abi: Abi, persistent: bool
) -> None:
    front = Blkfront(env, abi=abi, persistent=persistent)
    with connected(front, served):
        front.poke(0, b"b" * 2 * PAGE_SIZE)
        assert front.status(OP_WRITE_BARRIER, 8, front.whole_pages(2)) == RSP_OKAY
        assert front.status(OP_WRITE_BARRIER, 2**64 - 1, []) == RSP_OKAY
    expected = CONTENT[: 8 * 512] + b"b" * 2 * PAGE_SIZE + CONTENT[24 * 512 :]
    assert served.image.read_bytes() == expected
    stats = served.stats()
    assert (stats["f_req"], stats["wr_req"], stats["wr_sect"]) == (2, 0, 16)
    front.close()


@store_in_python
def test_b4_a_barrier_stands_between_what_is_before_and_after_it(
    served: Served, front: Blkfront, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that came before is durable, then it is, then what comes after is written: also
    where one goes on at the end of the other."""
    calls = calls_of_io(monkeypatch)
    page = front.whole_pages(1)
    front.send([
        front.request(OP_WRITE, 0, page)[1],
        front.request(OP_WRITE_BARRIER, 8, page)[1],
        front.request(OP_WRITE, 16, page)[1],
        front.request(OP_WRITE_BARRIER, 0, [])[1],
        front.request(OP_WRITE, 24, page)[1],
    ])  # fmt: skip
    with connected(front, served):
        assert {response.status for response in front.receive(5)} == {RSP_OKAY}
    assert calls == ["write 0", "sync", "write 8", "sync", "write 16", "sync", "write 24"]


@store_in_python
@pytest.mark.parametrize("fails", [1, 2])
def test_a_barrier_whose_flush_fails_is_not_acknowledged(
    served: Served, front: Blkfront, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """The one before its data, after which nothing is written, and the one after."""
    flushes: list[int] = []

    def sync(fd: int) -> None:
        flushes.append(fd)
        if len(flushes) == fails:
            raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "fdatasync", sync)
    front.poke(0, b"b" * PAGE_SIZE)
    with connected(front, served):
        assert front.status(OP_WRITE_BARRIER, 0, front.whole_pages(1)) == RSP_ERROR
    assert len(flushes) == fails
    written = served.image.read_bytes()[:PAGE_SIZE] == b"b" * PAGE_SIZE
    assert written == (fails == 2)
    assert served.stats()["flushes_failed"] == 1


@store_in_python
def test_a_barrier_whose_write_fails_is_not_acknowledged(
    served: Served, front: Blkfront, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwritev", full)
    with connected(front, served):
        assert front.status(OP_WRITE_BARRIER, 0, front.whole_pages(1)) == RSP_ERROR


# ------------------------------------------------------------------ DISCARD


@both_abis
def test_what_is_discarded_reads_as_zeros_and_takes_no_room(
    env: BlockEnvironment, served: Served, abi: Abi
) -> None:
    front = Blkfront(env, abi=abi)
    with connected(front, served):
        assert front.flush() == RSP_OKAY
        before = served.image.stat().st_blocks
        assert front.discard_sectors(800, 800) == RSP_OKAY
        assert front.read(800, 11) == bytes(11 * PAGE_SIZE)
        assert served.image.stat().st_blocks <= before - 800
        assert front.discard_sectors(0, 3) == RSP_OKAY
        assert front.discard_sectors(DISK_SECTORS - 1, 1) == RSP_OKAY
    expected = bytearray(CONTENT)
    for first, count in ((800, 800), (0, 3), (DISK_SECTORS - 1, 1)):
        expected[first * 512 : (first + count) * 512] = bytes(count * 512)
    assert served.image.read_bytes() == bytes(expected)
    stats = served.stats()
    assert (stats["ds_req"], stats["ds_sect"]) == (3, 804)
    assert (stats["wr_req"], stats["wr_sect"]) == (0, 0)
    front.close()


def test_a_discard_keeps_its_place_among_the_writes(served: Served, front: Blkfront) -> None:
    """Write, discard, write within one batch, the middle of each other."""
    front.poke(0, b"1" * 4 * PAGE_SIZE)
    front.poke(4 * PAGE_SIZE, b"2" * PAGE_SIZE)
    front.send([
        front.request(OP_WRITE, 0, front.whole_pages(4))[1],
        front.abi.pack_discard(9, 8, 16),
        front.request(OP_WRITE, 16, front.whole_pages(1, 4))[1],
    ])  # fmt: skip
    with connected(front, served):
        assert {response.status for response in front.receive(3)} == {RSP_OKAY}
    expected = b"1" * PAGE_SIZE + bytes(PAGE_SIZE) + b"2" * PAGE_SIZE + b"1" * PAGE_SIZE
    assert served.image.read_bytes()[: 4 * PAGE_SIZE] == expected


def test_b1_discards_that_make_no_sense(served: Served, witness: Witness, front: Blkfront) -> None:
    pack = front.abi.pack_discard
    cases = [
        (pack(1, 2**64 - 1, 1), RSP_ERROR),
        (pack(2, 2**64 - 8, 8), RSP_ERROR),
        (pack(3, 2**64 - 8, 16), RSP_ERROR),
        (pack(4, 8, 2**64 - 8), RSP_ERROR),
        (pack(5, 8, 2**64 - 1), RSP_ERROR),
        (pack(6, 2**63, 2**63), RSP_ERROR),
        (pack(7, DISK_SECTORS, 1), RSP_ERROR),
        (pack(8, 0, DISK_SECTORS + 1), RSP_ERROR),
        (pack(9, 2**55, 0), RSP_ERROR),
        (pack(10, 0, 8, flag=DISCARD_SECURE), RSP_EOPNOTSUPP),
        (pack(11, 0, 8, flag=255), RSP_EOPNOTSUPP),
    ]
    with connected(front, served):
        answers = {r.id: r.status for r in front.ask([slot for slot, _ in cases])}
        witness.check()
    assert answers == {number + 1: status for number, (_, status) in enumerate(cases)}
    assert served.image.read_bytes() == CONTENT
    assert served.stats()["ds_req"] == 0


@store_in_python
def test_b3_a_discard_that_fails_is_not_acknowledged(
    served: Served, front: Blkfront, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(number: int) -> object:
        def punch(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return punch

    with connected(front, served):
        for number, status in ((errno.EIO, RSP_ERROR), (errno.EOPNOTSUPP, RSP_EOPNOTSUPP)):
            monkeypatch.setattr("xenpy.drivers.block.stores.file.punch_hole", broken(number))
            assert front.discard_sectors(0, 8) == status
        assert front.status(OP_READ, 0, front.whole_pages(1)) == RSP_OKAY
    assert front.peek(0, PAGE_SIZE) == sectors(0, 8, CONTENT)


@pytest.mark.parametrize("why", ["read-only", "discard-enable", "the file system"])
def test_a_disk_that_offers_no_discard(
    env: BlockEnvironment,
    daemon: Daemon,
    witness: Witness,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tier: str,
    why: str,
) -> None:
    image = tmp_path / "fixed.img"
    image.write_bytes(CONTENT)
    if why == "the file system":
        monkeypatch.setattr("xenpy.drivers.block.stores.file.can_punch", lambda _: False)
    keys = {"discard-enable": "0"} if why == "discard-enable" else {}
    mode = "r" if why == "read-only" else "w"
    served = Served(daemon, env, image, 51712, mode, tier, backend_keys=keys)
    assert {key for key in served.features if "discard" in key} == {"feature-discard"}
    assert served.features["feature-discard"] == 0
    front = Blkfront(env)
    with connected(front, served):
        assert front.discard_sectors(0, 8) == RSP_EOPNOTSUPP
        witness.check()
    assert image.read_bytes() == CONTENT
    served.close()
    front.close()
