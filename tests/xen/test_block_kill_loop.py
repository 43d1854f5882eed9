# SPDX-License-Identifier: MIT
"""The daemon is killed with SIGKILL while a guest writes: nothing that was flushed is missing.

A page cache outlives a process, so this shows that nothing is acknowledged before it is done;
that it is on the disk then is what `test_block_power_cut` shows.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from string import ascii_lowercase

import pytest

from conformance.daemon_process import PATIENCE, DaemonProcess
from conformance.dom0_disk import xenpy
from conformance.guests import guest, make_image
from conformance.stamps import BLOCK, Ledger
from conformance.stock_backends import run
from xenpy import frontend_life
from xenpy.attach import DevicePlan, attach, detach
from xenpy.drivers.block.driver import DRIVER
from xenpy.drivers.block.front import BlockDevice
from xenpy.drivers.block.front_link import Wishes
from xenpy.errors import XenError
from xenpy.types import DOM0
from xenpy.vm import disk
from xenpy.xenstore import Store

pytestmark = pytest.mark.slow

BLOCKS = 256
SEED = 20261124


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(BLOCKS * BLOCK))
    return path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path) as daemon:
        yield daemon


def a_disk(image: Path) -> DevicePlan:
    return DRIVER.plan({"vdev": "xvdi", "target": str(image)}, DRIVER.kind)


async def write_and_flush(front: BlockDevice, ledger: Ledger) -> None:
    """Until the backend is no more."""
    with suppress(XenError):
        while True:
            written = ledger.choose(ledger.rng.randrange(1, 9))
            await asyncio.gather(
                *(front.pwrite(content, block * BLOCK) for block, content in written.items())
            )
            ledger.acknowledge(written)
            covered = ledger.before_flush()
            await front.flush()
            ledger.flushed(covered)


async def look(front: BlockDevice, ledger: Ledger) -> None:
    """What was flushed is there; from now on what is there counts."""
    content = await front.pread(BLOCKS * BLOCK, 0)

    def read(block: int) -> bytes:
        return content[block * BLOCK : (block + 1) * BLOCK]

    assert ledger.missing(read) == []
    ledger.settle(read)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [3, pytest.param(180, marks=pytest.mark.long)])
def test_nothing_flushed_is_missing_after_a_kill(
    daemon: DaemonProcess, image: Path, kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What was in flight is answered by nobody, and our frontend would wait for it each time.
    monkeypatch.setattr(frontend_life, "CLOSE_BOUND", 0.2)
    asyncio.run(killed_again_and_again(daemon, image, kills))


async def killed_again_and_again(daemon: DaemonProcess, image: Path, kills: int) -> None:
    # It would take our frontend's place.
    run("modprobe", "-r", "xen-blkfront")
    ledger, rng = Ledger(BLOCKS, SEED), random.Random(SEED)
    print(f"seed {SEED}")
    async with Store.open() as store:
        for _ in range(kills):
            ends = await attach(store, DOM0, a_disk(image))
            async with BlockDevice(store, ends.frontend, wishes=Wishes(data_pages=64)) as front:
                await look(front, ledger)
                writer = asyncio.create_task(write_and_flush(front, ledger))
                await asyncio.sleep(rng.uniform(0.02, 0.3))
                daemon.kill()
                # It closes what it did not park, which ends our writer.
                await asyncio.to_thread(daemon.start)
                await writer
            await detach(store, ends)
        ends = await attach(store, DOM0, a_disk(image))
        async with BlockDevice(store, ends.frontend, wishes=Wishes(data_pages=64)) as front:
            await look(front, ledger)
        await detach(store, ends)
    assert ledger.flushes >= kills
    print(f"{kills} kills, {ledger.turn} writes, {ledger.flushes} flushes")


SPAN = 64
"""Blocks that a guest writes, one after the other, round and round."""
WRITER = f"""
n=START
while true; do
    n=$((n + 1))
    yes $n | head -c 4096 > /tmp/block
    dd if=/tmp/block of=/dev/VDEV bs=4096 seek=$((n % {SPAN})) oflag=direct conv=fsync || exit
    echo $n
done 2> /dev/null
"""
"""dd's fsync is a FLUSH to the disk.  The stamp of a block is a number, line after line."""


def written(image: Path) -> list[int]:
    """Which write each block of the image is from; a block is from one write."""
    content = image.read_bytes()
    found: list[int] = []
    for start in range(0, SPAN * BLOCK, BLOCK):
        block = content[start : start + BLOCK]
        turn = int(block.split(b"\n", 1)[0].strip(b"\0") or 0)
        assert block == ((f"{turn}\n".encode() * BLOCK)[:BLOCK] if turn else bytes(BLOCK))
        found.append(turn)
    return found


def until_said(said: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not said.read_bytes():
        assert time.monotonic() < deadline, "the guest does not write"
        time.sleep(0.05)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_nothing_flushed_by_a_guest_is_missing_after_a_kill(
    daemon: DaemonProcess, image: Path, tmp_path: Path, kills: int
) -> None:
    """After each kill the guest gets the image again, as another disk: Linux's blkfront waits
    for ever for what it had in flight, and so does everything that uses the old one."""
    rng, flushed = random.Random(SEED), 0
    print(f"seed {SEED}")
    with guest("killed", make_image(tmp_path / "root.img", 1)) as name:
        domid = disk.run("xl", "domid", name).strip()
        for vdev in [f"xvd{letter}" for letter in ascii_lowercase[1 : kills + 1]]:
            done = xenpy("attach", "block", domid, f"vdev={vdev}", f"target={image}")
            assert done.returncode == 0, done.stderr
            said = tmp_path / vdev
            wait = f"until [ -b /dev/{vdev} ]; do sleep 0.1; done"
            script = WRITER.replace("START", str(flushed)).replace("VDEV", vdev)
            with said.open("wb") as out:
                command = ["xenvm-guest", "exec", name, "--", f"{wait}\n{script}"]
                with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out) as writer:
                    until_said(said)
                    time.sleep(rng.uniform(0.1, 1.5))
                    daemon.kill()
                    # Which serves the image to nobody: it was not parked.
                    daemon.start()
                    writer.kill()
            there = written(image)
            # The last line may have been cut.
            before = flushed
            flushed = int(said.read_bytes().rpartition(b"\n")[0].splitlines()[-1])
            for turn in range(max(1, flushed - SPAN + 1), flushed + 1):
                assert there[turn % SPAN] >= turn, f"write {turn} was flushed: {there}"
            # One write more may be there than its flush was answered.
            assert before < flushed <= max(there) <= flushed + 1
            flushed = max(there)
    print(f"{kills} kills, {flushed} writes flushed")
