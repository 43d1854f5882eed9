# SPDX-License-Identifier: MIT
"""The block engine in a process of its own: that its end costs one disk, and that it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import block_suite
from conformance.block_front import Blkfront, BlockEnvironment, Served, Witness, eventually
from conformance.block_suite import CONTENT, sectors
from conformance.xen_env import Loopback, children, nothing_left_in_the_hypervisor
from xenpy.drivers.block import worker
from xenpy.drivers.block.protocol import OP_READ, RSP_ERROR
from xenpy.errors import XenError

__all__ = ["nothing_left_in_the_hypervisor"]

daemon, witness = block_suite.daemon, block_suite.witness
served, front = block_suite.served, block_suite.front

SERVE = """\
import sys
from pathlib import Path
from conformance import block_suite
from conformance.block_front import Daemon, Served
from conformance.xen_env import Loopback, children

served = Served(Daemon(), Loopback(), Path(sys.argv[1]), 51712, tier="worker")
served.connect(dict(pair.split("=") for pair in sys.argv[2:]))
print(*children(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def env() -> BlockEnvironment:
    return Loopback()


@pytest.fixture
def tier() -> str:
    return "worker"


def workers_of(witness: Witness) -> set[int]:
    """The witness is served by one too."""
    return set(children())


def test_each_ring_has_a_process_that_ends_with_it(
    served: Served, witness: Witness, front: Blkfront
) -> None:
    before = workers_of(witness)
    served.connect(front.keys())
    (mine,) = set(children()) - before
    assert Path(f"/proc/{mine}/comm").read_text().strip() == "xenpy-block-wor"
    # Guest data goes into no core file.
    limits = Path(f"/proc/{mine}/limits").read_text()
    assert [line.split()[4] for line in limits.splitlines() if "core file" in line] == ["0"]
    served.disconnect()
    assert set(children()) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
def test_a_worker_that_is_killed_costs_its_disk(
    served: Served, witness: Witness, front: Blkfront, number: signal.Signals
) -> None:
    before = workers_of(witness)
    served.connect(front.keys())
    front.read(0, 1)
    (mine,) = set(children()) - before
    os.kill(mine, number)
    failure = served.failure()
    assert isinstance(failure, XenError)
    assert number.name in str(failure)
    witness.check()
    served.disconnect()
    # The same frontend may come back.
    served.connect(front.keys())
    assert front.read(8, 1) == sectors(8, 8, CONTENT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_a_terminal_or_systemd_sends_to_all_is_left_to_the_daemon(
    served: Served, witness: Witness, front: Blkfront, number: signal.Signals
) -> None:
    before = workers_of(witness)
    served.connect(front.keys())
    (mine,) = set(children()) - before
    os.kill(mine, number)
    assert front.read(0, 1) == CONTENT[:4096]
    assert served.failures == []


def test_an_image_cut_off_under_its_mapping_is_an_error_and_no_death(
    served: Served, witness: Witness, front: Blkfront
) -> None:
    served.connect(front.keys())
    front.read(0, 8)
    os.truncate(served.image, 1020 * 512)
    # In the middle of the last page, where a mapping has zeros; and beyond it.
    assert front.status(OP_READ, 1016, front.whole_pages(1)) == RSP_ERROR
    assert front.status(OP_READ, 1024, front.whole_pages(1)) == RSP_ERROR
    assert front.read(1008, 1) == sectors(1008, 8, CONTENT)
    assert served.failures == []
    witness.check()


def test_a_worker_dies_with_its_daemon(
    served: Served, witness: Witness, front: Blkfront, tmp_path: Path
) -> None:
    image = tmp_path / "other.img"
    image.write_bytes(CONTENT)
    keys = [f"{name}={value}" for name, value in front.keys().items()]
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(image), *keys],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        (its_worker,) = (int(pid) for pid in process.stdout.readline().split())
        assert front.read(0, 1) == CONTENT[:4096]
        process.kill()
        process.wait()
    eventually(lambda: not Path(f"/proc/{its_worker}").exists())
    # Nothing is held any more: another may have the ring.
    served.connect(front.keys())
    assert front.read(8, 1) == sectors(8, 8, CONTENT)
    witness.check()


def test_without_its_program_a_disk_does_not_connect(
    served: Served, front: Blkfront, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "WORKER", tmp_path / "missing")
    with pytest.raises(XenError, match="missing"):
        served.connect(front.keys())
