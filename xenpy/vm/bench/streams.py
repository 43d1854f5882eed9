# SPDX-License-Identifier: MIT
"""In dom0: measures the cells that `xenvm bench streams` asks for.

One end of each stream is in dom0, the other in a guest, which finds Python, xenpy and
libxenvchan on its disk: dom0's own root file system, read-only.  What is found goes to
standard output, a line of JSON each (`report.Figures.take`).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from xenpy.vm import guest, serve
from xenpy.vm.bench.disks import GUEST, PATIENCE, PINNED, TSC, Shell
from xenpy.vm.bench.dom0 import TROUBLE, found_out, step, tell
from xenpy.vm.bench.streams_table import CELLS, CONSOLE_BYTES, COUNTS, FEWER, RING, WIDE
from xenpy.vm.bench.table import WORK, Cell, chosen, rows
from xenpy.vm.disk import CommandError, domid, run

__all__ = ["main"]

ROOT: Final = Path(__file__).resolve().parents[3]
SOURCE: Final = ROOT / "xenpy/vm/data/libxenvchan_ends.c"
PROGRAM: Final = "/root/libxenvchan_ends"
ENDS: Final = (
    f"cd {ROOT} && PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1 python3 -m xenpy.testing.stream_ends"
)
PREPARE: Final = f"""
while [ ! -b /dev/xvda ]; do sleep 0.1; done
mount -t ext4 -o ro,noload /dev/xvda /mnt
for directory in dev proc sys; do mount --bind /$directory /mnt/$directory; done
mount -t tmpfs run /mnt/run
mount -t tmpfs tmp /mnt/tmp
chroot /mnt modprobe -a xen-gntalloc xen-gntdev xen-evtchn
head -c {CONSOLE_BYTES} /dev/zero | tr '\\0' x > /mnt/tmp/text
stty raw -echo < /dev/hvc0
test -e /mnt{ROOT}/xenpy
"""
LISTENERS: Final = {"stream": "sink", "ping": "echo"}
SPEAKERS: Final = {"stream": "source", "ping": "ping"}
PORT: Final = 5001
HOME: Final = "/local/domain/0"
TAKEN: Final = re.compile(r'\{"domid"')


class Streams:
    """The two domains.

    Args:
        shell: in the guest.
    """

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._number = 0
        self._address = ".".join([*guest.address(GUEST).split(".")[:3], "1"])

    def measure(self, job: str, way: str) -> float:
        """Bytes or round trips a second.

        Raises:
            CommandError: one of the ends failed.
        """
        if job == "console":
            return self._console(way)
        self._number += 1
        # Through XenStore it is the guest's, elsewhere domain 0's.
        path = f"data/bench-{self._number}"
        kind = job.removeprefix("wide-")
        count = (FEWER if way == "xenstore" else COUNTS)[kind]
        tail = f"{count} {WIDE if kind != job else RING}"
        ways: Mapping[str, Callable[[str, str], str]] = {
            "libxenvchan": lambda role, peer: f"{PROGRAM} {role} {peer} {HOME}/{path} {tail}",
            "netback": lambda role, peer: f"{ENDS} tcp {role} {peer} {PORT} {tail}",
            "xenstore": lambda role, peer: f"{ENDS} xenstore {role} {peer} {path} {tail}",
        }
        ours = f"{ENDS} {way} {{}} {{}} {HOME}/{path} {tail}"
        line = ways.get(way, ours.format)
        there = self._address if way == "netback" else "0"
        listen = line(LISTENERS[kind], domid(GUEST))
        speak = line(SPEAKERS[kind], there)
        with subprocess.Popen(
            ["sh", "-c", listen], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        ) as listener:  # fmt: skip
            try:
                spoken = self._shell.run(f"chroot /mnt sh -c '{speak}'")
                heard, _ = listener.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                listener.kill()
                message = f"{listen[-80:]} did not end within {PATIENCE:.0f} s"
                raise CommandError(message) from None
            except BaseException:
                listener.kill()
                raise
        if listener.returncode:
            raise CommandError(f"{listen[-80:]} failed: {heard[-500:]}")
        return float(heard if kind == "stream" else spoken)

    def _console(self, way: str) -> float:
        if way == "xenconsoled":
            return self._print()
        log = Path(WORK, "console.log")
        log.unlink(missing_ok=True)
        words = ["xenpy", "console", "take", domid(GUEST), "--json", "--log", os.fspath(log)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as taker:
            assert taker.stdout is not None
            if not TAKEN.match(taker.stdout.readline()):
                raise CommandError("xenpy console take did not take the console")
            try:
                rate = self._print()
            finally:
                taker.terminate()
        if log.stat().st_size < CONSOLE_BYTES:
            raise CommandError(f"{log.stat().st_size} of {CONSOLE_BYTES} bytes are in the log")
        return rate

    def _print(self) -> float:
        """The guest prints: bytes a second, by its clock."""
        line = "began=$(date +%s%N); cat /tmp/text > /dev/hvc0; echo $(($(date +%s%N) - began))"
        # Not "sh": busybox would take itself for that, whose date knows no nanoseconds.
        return CONSOLE_BYTES / (int(self._shell.run(f"chroot /mnt /bin/sh -c '{line}'")) / 1e9)


@contextmanager
def two_domains() -> Generator[Streams]:
    """dom0 and the guest."""
    run("cc", "-O2", "-o", PROGRAM, os.fspath(SOURCE), "-lxenvchan")
    # What is in the journal alone is not there for a mount that may not replay it.
    run("sh", "-c", "sync && fsfreeze -f / && fsfreeze -u /")
    root = run("findmnt", "--noheadings", "--output", "SOURCE", "/").strip()
    Path(WORK).mkdir(parents=True, exist_ok=True)
    with serve.Daemon(Path(WORK), "force=1", patience=PATIENCE):
        create = ("xenvm-guest", "create", GUEST, "--line", PINNED, "--line", TSC)
        run(*create, "--memory", "512", timeout=PATIENCE)
        words = ["vdev=xvda", f"target={root}", "mode=r", "--timeout", "60"]
        run("xenpy", "attach", "block", domid(GUEST), *words)
        with Shell() as shell:
            shell.run(f"set -e; {PREPARE}")
            yield Streams(shell)


def race(streams: Streams, cells: Sequence[Cell], rounds: int) -> None:
    """All jobs by all ways in turns, once to warm up and then `rounds` times."""
    missing: set[tuple[str, str]] = set()
    for number in range(rounds + 1):
        for job, names in rows(cells).items():
            start = number % len(names)
            for name in [*names[start:], *names[:start]]:
                if (job, name) in missing:
                    continue
                step(f"round {number} of {rounds}: {job} by {name}")
                try:
                    rate = streams.measure(job, name)
                except TROUBLE as error:
                    missing.add((job, name))
                    tell("failure", name=name, why=f"{job} failed: {error}")
                else:
                    tell("sample", job=job, disk=name, round=number, rate=rate)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure.  Returns 0 also when there was nothing to be measured: the host judges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("cells", nargs="+", help="their names")
    arguments = parser.parse_args(argv)
    cells = chosen(arguments.cells, CELLS)
    step("the guest")
    with found_out(cells), two_domains() as streams:
        race(streams, cells, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
