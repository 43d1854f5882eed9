# SPDX-License-Identifier: MIT
"""The benchmark's cells: which job, on whose disk, against whom, and what is asked of it.

A gate is what `--check` insists on, a goal what is worked towards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

__all__ = [
    "CELLS", "IDLE_SECONDS", "JOBS", "OURS", "RIVALS", "SIZE_MIB", "WALL_ROUNDS", "WORK", "Cell",
    "Job", "chosen", "rows",
]  # fmt: skip

SIZE_MIB = 64
"""Of every disk, as far as it is used."""
WORK = "/tmp/bench"
"""In dom0; /tmp is a tmpfs there.  A file system on the machine's disk would make the cells wait
for the host, which takes no instructions and so no time that could be measured."""
IDLE_SECONDS = 10
WALL_ROUNDS = 7


@dataclass(frozen=True)
class Job:
    """What fio does in the guest, with O_DIRECT and libaio.

    Attributes:
        rw: fio's `rw`.
        block: bytes in a request of fio's.
        depth: requests in flight.
        flush: whether each write is followed by a flush of the disk.
    """

    rw: str
    block: int
    depth: int
    flush: bool = False


JOBS: Mapping[str, Job] = {
    "randread-qd32": Job("randread", 4096, 32),
    "randwrite-qd32": Job("randwrite", 4096, 32),
    "randread-qd1": Job("randread", 4096, 1),
    "read64k-qd8": Job("read", 65536, 8),
    "write-flush-qd1": Job("randwrite", 4096, 1, flush=True),
}

_STORE = Path(__file__).resolve().parents[2] / "testing" / "ram_store.py"

OURS: Mapping[str, tuple[str, str]] = {
    "file": ("xvdg", f"{WORK}/file.img"),
    "memory": ("xvdh", f"memory:{SIZE_MIB}M"),
    "null": ("xvdi", f"null:{SIZE_MIB}M"),
    "python": ("xvdj", f"python:{_STORE}:RamStore?size={SIZE_MIB}M"),
}
"""Our disks: their vdev, and `target` as `xenpy attach block` takes it."""

RIVALS: Mapping[str, tuple[str, str]] = {
    "qdisk": ("xvdb", "QEMU's qdisk on a file"),
    "loop": ("xvdc", "xen-blkback on a loop device over a file"),
    "brd": ("xvdd", "xen-blkback on /dev/ram0"),
    "null_blk": ("xvde", "xen-blkback on /dev/nullb0"),
}
"""The others' disks: their vdev, and what they are."""


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    With a rival it is a race: operations per second of `job`, ours over theirs, at least
    `gate`.  Without one it is a cost: `unit`, at most `gate`.

    Attributes:
        name: what `--cells` chooses by.
        ours: the name of our disk, in `OURS`.
        gate: None if nothing is insisted on.
        goal: None if it is measured to be known, and no more.
        job: in `JOBS`, "" if no I/O goes on.
        rival: in `RIVALS`, "" for a cost.
        wall: measured by the clock on the wall, in a machine of its own.
    """

    name: str
    ours: str
    gate: float | None
    goal: float | None
    job: str = ""
    rival: str = ""
    unit: str = "operations/s"
    wall: bool = False

    def reaches(self, value: float, mark: float) -> bool:
        """Whether a ratio or a cost is as good as `mark`."""
        return value >= mark if self.rival else value <= mark


def _race(job: str, ours: str, rival: str, gate: float, goal: float) -> Cell:
    return Cell(f"{job}/{ours}/{rival}", ours, gate, goal, job=job, rival=rival)


CELLS: Sequence[Cell] = (
    _race("randread-qd32", "file", "qdisk", 1.5, 2.2),
    _race("randwrite-qd32", "file", "qdisk", 1.5, 2.2),
    _race("randread-qd32", "file", "loop", 0.85, 1.10),
    _race("randwrite-qd32", "file", "loop", 0.85, 1.10),
    _race("randread-qd1", "file", "qdisk", 1.15, 1.30),
    _race("randread-qd1", "file", "loop", 0.95, 1.03),
    _race("read64k-qd8", "file", "qdisk", 1.3, 2.1),
    _race("read64k-qd8", "file", "loop", 0.75, 1.10),
    _race("randread-qd32", "memory", "brd", 1.0, 1.20),
    _race("randread-qd32", "null", "null_blk", 1.3, 1.45),
    _race("randread-qd32", "python", "qdisk", 0.8, 1.2),
    _race("write-flush-qd1", "file", "qdisk", 1.0, 1.3),
    Cell("notifications", "file", 0.1, 0.03, "randread-qd32", unit="notifications/request"),
    Cell("syscalls/memory", "memory", 0.5, 0.10, "randread-qd32", unit="system calls/request"),
    Cell("syscalls/file", "file", 1.2, 0.25, "randread-qd32", unit="system calls/request"),
    Cell("bytecodes", "file", 0.01, 0, "randread-qd32", unit="Python bytecodes/request"),
    Cell("wakeups", "file", 1, 0, unit="wake-ups/s"),
    Cell("resident", "file", 4, 1.5, unit="MiB/idle disk"),
    Cell("ring-loop", "file", 1.5, 1.10, unit="times the C loop"),
    Cell("tap/exact", "file", 10, 5, "randread-qd32", unit="% more instructions/request"),
    Cell("tap/passive", "file", None, 25, "randread-qd32", unit="% more instructions/request"),
    Cell("tap/loss", "file", None, 50, "randread-qd32", unit="% not seen by a passive tap"),
    Cell("wall-clock", "file", None, 4, "randread-qd32", "qdisk", wall=True),
)


def chosen(patterns: Iterable[str], cells: Sequence[Cell] = CELLS) -> list[Cell]:
    """The cells whose names match one of the shell patterns; all for none."""
    wanted = list(patterns) or ["*"]
    return [cell for cell in cells if any(fnmatchcase(cell.name, one) for one in wanted)]


def rows(cells: Iterable[Cell]) -> dict[str, list[str]]:
    """The disks, or ways, that each job is done by, in the order in which they take turns."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        if cell.rival or cell.name == "notifications":
            disks = found.setdefault(cell.job, [])
            disks += [one for one in (cell.ours, cell.rival) if one and one not in disks]
    return found
