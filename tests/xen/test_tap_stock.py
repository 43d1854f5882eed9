# SPDX-License-Identifier: MIT
"""A stock blkfront that is tapped; what it asked for asked of two backends, and what it was
answered answered again."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from conformance.block_front_suite import acted
from conformance.daemon_process import DaemonProcess
from conformance.dom0_disk import attached, xenpy
from conformance.guests import make_image
from conformance.stock_backends import Nodes, a_loop, blkback_module, run, unload_blkback
from conformance.tapping import tapping
from conformance.xen_env import nothing_left_in_the_hypervisor
from xenpy.capture import Capture
from xenpy.drivers.block.replay import wanted
from xenpy.xenstore import Store

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]

SIZE = 64 << 20


def a_file_system(disk: Path, directory: Path) -> None:
    """Made, mounted, written to, unmounted: by the kernel alone."""
    directory.mkdir()
    run("mkfs.ext4", "-q", str(disk))
    run("mount", str(disk), str(directory))
    try:
        for number in range(20):
            (directory / f"{number}").write_bytes(bytes([number]) * 300_000)
            run("sync", "--file-system", str(directory))
        (directory / "0").unlink()
        run("fstrim", str(directory))
    finally:
        run("umount", str(directory))


def stock_capture(directory: Path) -> tuple[Path, int]:
    """What dom0's own xen-blkfront asks a disk of ours for, and how much the daemon has counted."""
    image, path = directory / "disk.img", directory / "disk.capture"
    make_image(image, SIZE >> 20)
    with DaemonProcess(directory, "queues=2") as daemon:
        with attached(str(image), SIZE // 512) as disk:
            (name,) = daemon.devices()
            before = daemon.devices()[name]["requests"]
            words = ("--rundir", str(directory), "--write", str(path))
            with tapping(name, *words) as said:
                assert "exact" in said
                a_file_system(disk, directory / "mnt")
                counted = daemon.devices()[name]["requests"] - before
        daemon.stop()
    image.unlink()
    return path, counted


@acted
async def test_a_stock_frontend_is_captured_and_two_backends_answer_the_same(
    tmp_path: Path,
) -> None:
    capture, counted = await asyncio.to_thread(stock_capture, tmp_path)
    with capture.open("rb") as file:
        read = Capture(file)
        requests = [wanted(read.head.layout, record) for _, record in read]
    head, end = read.head, read.tail
    # A ring for each of dom0's CPUs, and two were offered.
    assert (head.driver, head.rings, head.exact) == ("block", min(2, os.cpu_count() or 1), True)
    assert end is not None
    assert (end.lost, end.requests, len(requests)) == (0, counted, counted)
    assert {one.fields["status"] for one in requests} == {"okay"}
    operations = [one.fields["op"] for one in requests]
    assert {"read", "write", "flush", "discard"} <= set(operations)
    assert any("indirect" in one.fields for one in requests)

    image = tmp_path / "other.img"
    for kind in ("vbd3", "vbd"):
        make_image(image, SIZE >> 20)
        async with replayed(kind, image, tmp_path, capture) as said:
            assert said["requests"] == said["same"] == counted, said
            print(kind, said)


@asynccontextmanager
async def replayed(
    kind: str, image: Path, directory: Path, capture: Path
) -> AsyncIterator[dict[str, object]]:
    """By `xenpy replay`, on a disk that xenpy or the kernel's xen-blkback serves."""
    async with AsyncExitStack() as held:
        if kind == "vbd":
            held.callback(unload_blkback)
            held.enter_context(blkback_module())
            device = held.enter_context(a_loop(image))
            keys = {"type": "phy", "params": device}
        else:
            held.enter_context(DaemonProcess(directory, "queues=2"))
            device = ""
            keys = {"type": "tap", "params": f"aio:{image}", "discard-enable": "1"}
        store = await held.enter_async_context(Store.open())
        nodes = Nodes(store, kind)
        await nodes.make(keys)
        try:
            if device:
                await nodes.plug(device)
            words = [str(capture), nodes.front, "--destroy", "--queues", "2", "--json"]
            done = await asyncio.to_thread(xenpy, "replay", *words)
            assert done.returncode == 0, done.stderr + done.stdout
            yield json.loads(done.stdout)
        finally:
            await nodes.remove()


READS, LENGTH, START = 64, 8192, 1 << 20
FAILING = "error,probability=0.3,seed=7,operation=read,from=1M"
LATE = 5
"""ms for each read."""


def outcomes(disk: Path) -> list[bool]:
    """Which reads of dom0's kernel succeed, none of them out of its cache."""
    found: list[bool] = []
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, LENGTH) as buffer:
            for number in range(READS):
                try:
                    found.append(os.preadv(fd, [buffer], START + number * LENGTH) == LENGTH)
                except OSError:
                    found.append(False)
    finally:
        os.close(fd)
    return found


def seen(path: Path) -> tuple[list[tuple[object, ...]], float]:
    """The requests of a capture, with their statuses; the seconds that they took in all."""
    with path.open("rb") as file:
        capture = Capture(file)
        records = [record for _, record in capture]
    fields = [wanted(capture.head.layout, record).fields for record in records]
    told = [(one["op"], one["sector"], one["sectors"], one["status"]) for one in fields]
    return told, sum(record.answered - record.taken for record in records) / 1e9


def test_a_stock_frontend_meets_the_answers_of_a_capture(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        found: list[list[bool]] = []
        paths = [tmp_path / "failing.capture", tmp_path / "replayed.capture"]
        for path, filters in zip(
            paths, (f"delay,read={LATE} {FAILING}", f"replay,capture={paths[0]}"), strict=True
        ):
            with attached(f"memory:{SIZE}", SIZE // 512, f"filter={filters}") as disk:
                (name,) = daemon.devices()
                with tapping(name, "--rundir", str(tmp_path), "--write", str(path)):
                    found.append(outcomes(disk))
                counters = daemon.devices()[name]
        # And once more, without: it is the filter that makes them fail.
        with attached(f"memory:{SIZE}", SIZE // 512) as disk:
            assert all(outcomes(disk))
        daemon.stop()
    assert found[0] == found[1]
    assert 0 < found[0].count(False) < READS
    (first, took), (second, took_again) = map(seen, paths)
    assert first == second
    assert len(first) == counters["replay_answers"] == READS
    assert took_again >= took * 0.9 >= READS * LATE / 1000 * 0.9
    print(f"{READS} reads, {found[0].count(False)} failed; {took:.3f} s, then {took_again:.3f} s")
