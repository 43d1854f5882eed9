# SPDX-License-Identifier: MIT
"""In dom0: what a daemon costs besides instructions, as the kernel counts it.

A daemon is its process and all that descend from it: an engine in a worker process counts.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from xenpy.vm.disk import CommandError, run

__all__ = [
    "Syscalls", "Tap", "bytecodes", "family", "private_bytes", "sleeps", "tap", "traced_syscalls",
]  # fmt: skip

PROC = Path("/proc")
TRACING = Path("/sys/kernel/tracing")
SYS_ENTER = TRACING / "events/raw_syscalls/sys_enter"
HISTOGRAM = "hist:keys=common_pid"


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for one in found:
        for task in _tasks(one):
            with suppress(OSError):
                found += [int(word) for word in (task / "children").read_text().split()]
    return found


def _tasks(pid: int) -> list[Path]:
    try:
        return list((PROC / str(pid) / "task").iterdir())
    except OSError:
        return []


def sleeps(pid: int) -> int:
    """How often any thread of the daemon went to sleep, and so was woken."""
    total = 0
    for one in family(pid):
        for task in _tasks(one):
            with suppress(OSError):
                (line,) = re.findall(
                    r"^voluntary_ctxt_switches:\s*(\d+)", (task / "status").read_text(), re.M
                )
                total += int(line)
    return total


def private_bytes(pid: int) -> int:
    """Memory that would be free if the daemon ended: shared libraries are not counted."""
    total = 0
    for one in family(pid):
        text = (PROC / str(one) / "smaps_rollup").read_text()
        total += sum(int(kib) << 10 for kib in re.findall(r"^Private_\w+:\s*(\d+) kB", text, re.M))
    return total


class Syscalls:
    """What `traced_syscalls` has counted."""

    def __init__(self) -> None:
        self.count = 0


@contextmanager
def traced_syscalls(pid: int) -> Generator[Syscalls]:
    """Count the daemon's system calls during the block, by the kernel's tracepoint.

    Unlike strace this stops nobody, so what waits in the ring is no more than otherwise.
    """
    if not SYS_ENTER.exists():
        run("mount", "-t", "tracefs", "tracefs", str(TRACING))
    trigger = SYS_ENTER / "trigger"
    counted = Syscalls()
    threads = _threads(pid)
    trigger.write_text(HISTOGRAM)
    try:
        yield counted
        said = (SYS_ENTER / "hist").read_text()
    finally:
        trigger.write_text(f"!{HISTOGRAM}")
    threads |= _threads(pid)
    for thread, count in re.findall(r"common_pid:\s*(\d+) *\} hitcount:\s*(\d+)", said):
        if int(thread) in threads:
            counted.count += int(count)


def _threads(pid: int) -> set[int]:
    return {int(task.name) for one in family(pid) for task in _tasks(one)}


def bytecodes(pid: int, directory: Path) -> int:
    """The bytecodes that the daemon's Pythons have executed; data/counted counts them.

    Raises:
        CommandError: one of its processes is a Python that is not counted.
    """
    total = 0
    for one in family(pid):
        counts = directory / str(one)
        if counts.exists():
            total += sum(memoryview(counts.read_bytes()).cast("Q"))
        elif "python" in (PROC / str(one) / "exe").readlink().name:
            raise CommandError(f"process {one} of the daemon is a Python that nobody counts")
    return total


class Tap:
    """What a tap has seen, and what it has not; once it has ended."""

    def __init__(self) -> None:
        self.seen = self.lost = 0


@contextmanager
def tap(device: str, *words: str) -> Generator[Tap]:
    """Have `xenpy tap` capture what a device does during the block.

    Raises:
        CommandError: it does not.
    """
    command = ["xenpy", "tap", device, "--write", "/dev/null", *words]
    found = Tap()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        try:
            yield found
        finally:
            process.send_signal(signal.SIGINT)
            said += process.stderr.read()
    counts = re.search(r"(\d+) requests, (\d+) lost", said)
    if counts is None or int(counts[1]) == 0:
        raise CommandError(f"the tap of {device} saw nothing: {said.strip()[-500:]}")
    found.seen, found.lost = int(counts[1]), int(counts[2])
