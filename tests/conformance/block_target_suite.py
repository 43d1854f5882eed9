# SPDX-License-Identifier: MIT
"""Every kind of target and filter through a ring: one suite for the fakes and for a real Xen.

What a store does by itself is in store_contract_suite.py.  A module that runs this one
imports every name and defines a fixture `env`, a `BlockEnvironment`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conformance import block_suite
from conformance.block_front import (
    Blkfront,
    BlockEnvironment,
    Daemon,
    Served,
    Witness,
    connected,
    eventually,
)
from conformance.nbd_server import QemuNbd, have_libnbd
from fences import ROOT
from xenpy.backend import DeviceError
from xenpy.drivers.block.protocol import OP_READ, OP_WRITE, RSP_ERROR, RSP_OKAY
from xenpy.types import PAGE_SIZE

SIZE = 1 << 20
SECTORS = SIZE // 512
RAM_STORE = f"python:{ROOT}/docs/howto/ram_store.py:RamStore"
STRIPED_STORE = f"python:{ROOT}/docs/howto/striped_store.py:StripedStore"


daemon, witness = block_suite.daemon, block_suite.witness


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QemuNbd]:
    have_libnbd()
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(SIZE)], check=True)
    with QemuNbd(image, tmp_path / "nbd.sock", "--format=qcow2") as server:
        yield server


@contextmanager
def serving(
    daemon: Daemon, env: BlockEnvironment, target: str, mode: str = "w", **keys: str
) -> Iterator[Served]:
    options = {"python": "1", "direct": "1"}
    named = {name.replace("_", "-"): text for name, text in keys.items()}
    served = Served(
        daemon, env, Path("unused"), 51712, mode,
        backend_keys={"params": target, **named}, options=options,
    )  # fmt: skip
    try:
        yield served
    finally:
        served.close()


def check_a_history(env: BlockEnvironment, served: Served) -> None:
    """Whole pages anywhere, by both ways of a guest's data, against a model; then once more."""
    rng = random.Random(5)
    model = bytearray(SIZE)
    pages = SIZE // PAGE_SIZE
    for persistent in (True, False):
        front = Blkfront(env, persistent=persistent)
        with connected(front, served) as published:
            assert published["sectors"] == SECTORS
            for _ in range(24):
                count = rng.randrange(1, 12)
                page = rng.randrange(pages - count)
                place = slice(page * PAGE_SIZE, (page + count) * PAGE_SIZE)
                if rng.random() < 0.5:
                    model[place] = rng.randbytes(count * PAGE_SIZE)
                    front.write(page * 8, bytes(model[place]))
                else:
                    assert front.read(page * 8, count) == model[place]
            assert front.flush() == RSP_OKAY
            for page in range(0, pages - 8, 8):
                place = slice(page * PAGE_SIZE, (page + 8) * PAGE_SIZE)
                assert front.read(page * 8, 8) == model[place]
        front.close()


@pytest.mark.parametrize(
    "target",
    ["memory:1M", f"{RAM_STORE}?size=1M", f"{STRIPED_STORE}?directory=DIR&files=3&size=1M", "FILE"],
)
@pytest.mark.parametrize("filters", ["", "stats cow", "log,path=DIR/log rate,iops=1000000"])
def test_a_target_keeps_what_was_written(
    env: BlockEnvironment,
    daemon: Daemon,
    witness: Witness,
    tmp_path: Path,
    target: str,
    filters: str,
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    target, filters = (
        text.replace("DIR", str(tmp_path)).replace("FILE", str(image)) for text in (target, filters)
    )
    with serving(daemon, env, target, filter=filters) as served:
        check_a_history(env, served)
        assert served.stats()["errors"] == 0
        if "stats" in filters:
            assert served.stats()["stats_write_bytes"] == served.stats()["wr_sect"] * 512
    if "cow" in filters:
        assert image.read_bytes() == bytes(SIZE)


def test_a_qcow2_image_behind_an_nbd_server(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, server: QemuNbd
) -> None:
    with serving(daemon, env, server.target) as served:
        check_a_history(env, served)
        assert served.stats()["errors"] == 0


def test_a_null_disk_moves_nothing(env: BlockEnvironment, daemon: Daemon, witness: Witness) -> None:
    with serving(daemon, env, "null:1G") as served:
        assert served.features["feature-persistent"] == 0
        # Linux's frontend keeps its grants whatever was offered.
        front = Blkfront(env, persistent=True)
        with connected(front, served) as published:
            assert published["sectors"] == 1 << 21
            front.write(0, b"x" * PAGE_SIZE)
            front.poke(0, b"own" + bytes(PAGE_SIZE - 3))
            assert front.status(OP_READ, 0, front.whole_pages(1)) == RSP_OKAY
            assert front.peek(0, 3) == b"own"
            # What is not there cannot be read even so.
            assert front.status(OP_READ, 1 << 21, front.whole_pages(1)) == RSP_ERROR
        stats = served.stats()
        assert (stats["grants_mapped"], stats["grants_copied"]) == (0, 0)
        assert (stats["rd_sect"], stats["wr_sect"]) == (8, 8)
        front.close()


@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_read_only_filter_makes_a_read_only_disk(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, mode: str
) -> None:
    with serving(daemon, env, "memory:1M", mode, filter="readonly") as served:
        front = Blkfront(env)
        with connected(front, served) as published:
            assert published["info"] == 4
            assert front.status(OP_WRITE, 0, front.whole_pages(1)) == RSP_ERROR
            assert front.read(0, 1) == bytes(PAGE_SIZE)
        front.close()


def test_an_overlay_is_found_again(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(b"a" * SIZE)
    filters = f"cow,overlay={tmp_path}/overlay"
    for round_ in range(3):
        with serving(daemon, env, str(image), filter=filters) as served:
            front = Blkfront(env)
            with connected(front, served):
                if round_:
                    assert front.read(8, 1) == bytes([round_ - 1]) * PAGE_SIZE
                front.write(8, bytes([round_]) * PAGE_SIZE)
                assert front.read(0, 1) == b"a" * PAGE_SIZE
            front.close()
    assert image.read_bytes() == b"a" * SIZE


def test_an_injected_error_fails_its_request_only(
    env: BlockEnvironment, daemon: Daemon, witness: Witness
) -> None:
    with serving(daemon, env, "memory:1M", filter="error,operation=write,from=8K,to=12K") as served:
        front = Blkfront(env)
        with connected(front, served):
            assert front.status(OP_WRITE, 16, front.whole_pages(1)) == RSP_ERROR
            front.write(24, b"y" * PAGE_SIZE)
            assert front.read(24, 1) == b"y" * PAGE_SIZE
        front.close()
        assert served.stats()["errors"] == 1


def test_an_nbd_server_that_dies_gives_errors(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, server: QemuNbd
) -> None:
    with serving(daemon, env, server.target) as served:
        front = Blkfront(env)
        with connected(front, served):
            front.write(0, b"x" * PAGE_SIZE)
            server.kill()
            assert front.status(OP_WRITE, 0, front.whole_pages(1)) == RSP_ERROR
            assert front.flush() == RSP_ERROR
            witness.check()
        front.close()


def test_an_nbd_server_that_died_is_not_the_next_daemon_s(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, server: QemuNbd
) -> None:
    """That one would connect to the server's successor, and know nothing of what was lost."""
    with serving(daemon, env, server.target) as served:
        front = Blkfront(env)
        with connected(front, served):
            front.write(0, b"x" * PAGE_SIZE)
        front.close()
        assert daemon.run(served.device.hand_over()) == ""
        server.kill()
        assert "cannot be flushed" in daemon.run(served.device.hand_over())


def test_an_nbd_server_that_hangs_is_waited_for(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, server: QemuNbd
) -> None:
    """The disconnect lasts as long; another disk goes on meanwhile."""

    async def disconnect(served: Served) -> asyncio.Task[None]:
        return asyncio.create_task(served.device.disconnect())

    async def done(task: asyncio.Task[None]) -> bool:
        await asyncio.sleep(0.1)
        return task.done()

    with serving(daemon, env, server.target) as served:
        front = Blkfront(env)
        served.connect(front.keys())
        front.write(0, b"x" * PAGE_SIZE)
        server.pause()
        front.send([front.request(OP_WRITE, 8, front.whole_pages(1))[1]])
        task = daemon.run(disconnect(served))
        witness.check()
        assert not daemon.run(done(task))
        server.resume()
        eventually(lambda: daemon.run(done(task)))
        (response,) = front.receive(1)
        assert response.status == RSP_OKAY
        front.close()


@pytest.mark.parametrize(
    ("target", "filters", "volatile"),
    [
        ("memory:1M", "", True), (RAM_STORE, "", True), ("null:1M", "", False),
        ("null:1M", "cow", True), ("memory:1M", "stats", True), ("FILE", "", False),
    ],
)  # fmt: skip
def test_what_ends_with_the_daemon_is_taken_over_by_no_other(
    env: BlockEnvironment,
    daemon: Daemon,
    witness: Witness,
    tmp_path: Path,
    target: str,
    filters: str,
    volatile: bool,
) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    target = target.replace("FILE", str(image))
    with serving(daemon, env, target, filter=filters) as served:
        front = Blkfront(env)
        with connected(front, served) as published:
            assert ("xenpy-volatile" in published) == volatile
        # The same daemon has it still.
        with connected(front, served):
            assert front.flush() == RSP_OKAY
        front.close()
    if volatile:
        taken = pytest.raises(DeviceError, match="ended with the daemon that served it")
        with taken, serving(daemon, env, target, filter=filters, xenpy_volatile="1"):
            pass


def test_a_target_that_cannot_be_served_says_why(
    env: BlockEnvironment, daemon: Daemon, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL):
        for target, reason in (
            ("nbd:unix:/nowhere", "cannot open nbd:unix:/nowhere: .*No such file"),
            ("python:/nowhere.py:X", "FileNotFoundError"),
            ("memory:none", "is no size"),
        ):
            with pytest.raises(DeviceError, match=reason), serving(daemon, env, target):
                pass
