# SPDX-License-Identifier: MIT
"""Power cuts under `xenpy serve block`: what dom0's own xen-blkfront was told is on the disk, is.

The image lies on dm-log-writes, whose log up to a mark is what a cut at that mark leaves.  A
daemon whose flushes do nothing, everything else being the same, must be found out.
"""

from __future__ import annotations

import copy
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from conformance.daemon_process import DaemonProcess
from conformance.dom0_disk import attached
from conformance.log_writes import dmsetup, entries, logged_disk
from conformance.stamps import BLOCK, Ledger
from conformance.stock_backends import run

pytestmark = pytest.mark.slow

BLOCKS = 512
LOG_MIB = 64
SEED = 20261124

NO_FLUSH = """
int fdatasync(int fd) { (void)fd; return 0; }
int fsync(int fd) { (void)fd; return 0; }
"""


@pytest.fixture
def page() -> Iterator[mmap.mmap]:
    """O_DIRECT wants its memory aligned."""
    with mmap.mmap(-1, BLOCK) as page:
        yield page


def write(fd: int, page: mmap.mmap, written: Mapping[int, bytes]) -> None:
    for block, content in written.items():
        page[:] = content
        assert os.pwritev(fd, [page], block * BLOCK) == BLOCK


def cut_again_and_again(
    tmp_path: Path, page: mmap.mmap, cuts: int, *words: str, **environment: str
) -> Mapping[str, Ledger]:
    """Write and flush, and put a mark into the log, `cuts` times.

    Args:
        words, environment: of the daemon.

    Returns:
        What the disk owed its guest at each mark.
    """
    image, log = tmp_path / "disk.img", tmp_path / "log.img"
    for path, size in ((image, BLOCKS * BLOCK), (log, LOG_MIB << 20)):
        path.touch()
        os.truncate(path, size)
    ledger = Ledger(BLOCKS, SEED)
    owed: dict[str, Ledger] = {}
    print(f"seed {SEED}")
    run("modprobe", "xen-blkfront")
    with (
        logged_disk("xenpylog", image, log) as device,
        DaemonProcess(tmp_path, *words, environment=environment),
        attached(str(device), BLOCKS * BLOCK // 512) as disk,
    ):
        fd = os.open(disk, os.O_RDWR | os.O_DIRECT)
        try:
            for cut in range(cuts):
                written = ledger.choose(ledger.rng.randrange(1, 24))
                write(fd, page, written)
                ledger.acknowledge(written)
                covered = ledger.before_flush()
                os.fsync(fd)
                ledger.flushed(covered)
                # And some that nobody has promised anything about.
                written = ledger.choose(ledger.rng.randrange(8))
                write(fd, page, written)
                ledger.acknowledge(written)
                dmsetup("message", "xenpylog", "0", "mark", f"cut{cut}")
                owed[f"cut{cut}"] = copy.deepcopy(ledger)
        finally:
            os.close(fd)
    return owed


def lost(log: Path, owed: Mapping[str, Ledger]) -> Mapping[str, list[str]]:
    """What is missing on the disk after each cut."""
    disk = bytearray(BLOCKS * BLOCK)
    found: dict[str, list[str]] = {}
    for entry in entries(log):
        entry.apply(disk)
        if entry.mark in owed:
            found[entry.mark] = owed[entry.mark].missing(
                lambda block: bytes(disk[block * BLOCK : (block + 1) * BLOCK])
            )
    assert found.keys() == owed.keys()
    return found


@pytest.mark.parametrize("cuts", [5, pytest.param(50, marks=pytest.mark.long)])
def test_what_was_flushed_survives_a_power_cut(tmp_path: Path, page: mmap.mmap, cuts: int) -> None:
    owed = cut_again_and_again(tmp_path, page, cuts)
    assert not any(lost(tmp_path / "log.img", owed).values())
    print(f"{cuts} cuts, {list(owed.values())[-1].turn} writes")


def test_a_daemon_that_does_not_flush_is_found_out(tmp_path: Path, page: mmap.mmap) -> None:
    source, library = tmp_path / "no_flush.c", tmp_path / "no_flush.so"
    source.write_text(NO_FLUSH)
    run("gcc", "-shared", "-fPIC", "-o", str(library), str(source))
    # Within the daemon: a worker takes nothing over of its environment.
    owed = cut_again_and_again(tmp_path, page, 5, "tier=native", LD_PRELOAD=str(library))
    assert any(lost(tmp_path / "log.img", owed).values())
