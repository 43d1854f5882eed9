# SPDX-License-Identifier: MIT
"""fio finds every checksum right: through each tier, from each store, by dom0's own blkfront."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conformance.daemon_process import DaemonProcess
from conformance.dom0_disk import attached
from conformance.fio import OPERATIONS, SEED, fio
from conformance.guests import MIB, make_image
from conformance.nbd_server import QemuNbd
from conformance.stock_backends import a_loop
from xenpy.vm import disk

SIZE = 32 * MIB
IN_C = ("file", "direct", "device", "device-4096", "memory")
CALLED = ("file", "nbd", "python", "cow")
IN_PYTHON = ("file", "device-4096", "nbd", "python")
OTHER_TIERS = disk.xen_version() >= disk.XL_TAKES_TAP
"""On an older Xen the tier that guests get by default."""
CASES = [
    *(("worker", store) for store in IN_C),
    *(("native", store) for store in IN_C if OTHER_TIERS),
    *(("callback", store) for store in CALLED if OTHER_TIERS),
    *(("batch", store) for store in IN_PYTHON if OTHER_TIERS),
]


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[str]]:
    """What to attach, and more words."""
    image = make_image(tmp_path / "disk.img", SIZE // MIB)
    store: str = request.param
    with ExitStack() as stack:
        if store.startswith("device"):
            options = ("--sector-size", "4096") if store == "device-4096" else ()
            yield [stack.enter_context(a_loop(image, *options))]
        elif store == "nbd":
            qcow2 = tmp_path / "disk.qcow2"
            disk.run("qemu-img", "create", "-q", "-f", "qcow2", str(qcow2), str(SIZE))
            server = QemuNbd(qcow2, tmp_path / "nbd.sock", "--format=qcow2")
            yield [stack.enter_context(server).target]
        elif store == "cow":
            yield [str(image), f"filter=stats cow,overlay={tmp_path}/overlay"]
        else:
            places = {
                "memory": "memory:32M",
                "python": "python:/root/xenpy/docs/howto/ram_store.py:RamStore?size=32M",
            }
            yield [places.get(store, str(image))]


def check(jobs: list[dict[str, Any]], daemon: DaemonProcess) -> None:
    """Every job did its work, without an error at either end."""
    (counters,) = daemon.devices().values()
    served = 0
    for job in jobs:
        assert job["error"] == 0
        # What was written is read once more.
        reads, writes = job["read"]["total_ios"], job["write"]["total_ios"]
        assert min(reads, writes) > OPERATIONS // 4
        served += reads + writes
    assert counters["rd_req"] + counters["wr_req"] >= served
    assert (counters["errors"], counters["refused"]) == (0, 0)
    print(f"seed {SEED}: {served} reads and writes, {counters['f_req']} flushes")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tier", "target"), CASES, indirect=["target"], ids=["-".join(case) for case in CASES]
)
def test_fio_finds_every_checksum_right(
    tier: str, target: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    disk.run("modprobe", "xen-blkfront")
    direct = int("direct" in request.node.name)
    words = ("python=1", f"tier={tier}", f"direct={direct}")
    with (
        DaemonProcess(tmp_path, *words) as daemon,
        attached(target[0], SIZE // 512, *target[1:]) as path,
    ):
        check(fio(path, f"--size={SIZE}"), daemon)


@pytest.mark.slow
@pytest.mark.smp
@pytest.mark.parametrize(
    ("tier", "target"),
    [("worker", "file"), ("native", "memory"), ("callback", "python"), ("batch", "python")],
    indirect=["target"],
    ids=["worker-file", "native-memory", "callback-python", "batch-python"],
)
def test_fio_on_two_cpus_at_once(tier: str, target: list[str], tmp_path: Path) -> None:
    """A job on each CPU, and so on each queue, and each has half of the disk."""
    disk.run("modprobe", "xen-blkfront")
    with (
        DaemonProcess(tmp_path, "python=1", f"tier={tier}") as daemon,
        attached(target[0], SIZE // 512, *target[1:]) as path,
    ):
        half = SIZE // 2
        split = ("--cpus_allowed=0-1", "--cpus_allowed_policy=split")
        jobs = fio(path, "--numjobs=2", f"--size={half}", f"--offset_increment={half}", *split)
        assert len(jobs) == 2
        assert "2 queues" in daemon.said()
        check(jobs, daemon)
