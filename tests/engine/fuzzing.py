# SPDX-License-Identifier: MIT
"""clang's libFuzzer on the native block engine, as a process.  `fuzz.c` says what an input is."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from pathlib import Path

import xenpy
from compiling import compile_c
from xenpy.drivers.block.protocol import (
    ABI_X86_32,
    ABI_X86_64,
    OP_FLUSH_DISKCACHE,
    OP_READ,
    OP_WRITE,
    OP_WRITE_BARRIER,
    Abi,
)
from xenpy.types import PAGE_SIZE

__all__ = ["ENGINE", "SEED", "Fuzzer"]

HERE = Path(__file__).parent
ENGINE = Path(xenpy.__file__).parent / "drivers" / "block" / "engine"
SANITIZERS = ("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
SEED = 20261124

PERSISTENT, DISCARD, BARRIER, MAPPED, CALLBACKS = 1, 4, 8, 16, 64
ALL_SEGMENTS = 3
"""Of the offers that fuzz.c has: 256."""
RING_HEADER = 64


def compiled(directory: Path, engine: Path) -> Path:
    return compile_c(
        HERE / "fuzz.c", directory / "fuzz", f"-I{HERE}", f"-I{engine}", "-g", "-pthread",
        *SANITIZERS, compiler="clang",
    )  # fmt: skip


def a_frontend(rng: random.Random, abi: Abi, flags: int) -> bytes:
    """An honest one, whose ring holds a request of every kind."""
    refs = range(1, 1024)
    slots: list[bytes] = []
    for number in range(24):
        operation = rng.choice((OP_READ, OP_WRITE, OP_WRITE_BARRIER, OP_FLUSH_DISKCACHE))
        segments = [(rng.choice(refs), 0, 7) for _ in range(rng.randrange(1, 12))]
        slots.append(abi.pack_request(operation, number, rng.randrange(4000), segments))
    slots.append(abi.pack_discard(90, 8, 16))
    slots += [
        abi.pack_indirect(OP_READ, 91, 0, 40, [1]),
        abi.pack_indirect(OP_WRITE, 92, 0, 9, [1]),
    ]
    table = abi.pack_segments([(rng.choice(refs), 0, 7) for _ in range(40)])
    ring = struct.pack("<4I", len(slots), 1, 0, 1).ljust(RING_HEADER, b"\0") + b"".join(slots)
    head = bytes([flags, ABIS.index(abi), 31, ALL_SEGMENTS, 64, rng.randrange(256)]) + bytes(4)
    return head + ring.ljust(PAGE_SIZE, b"\0") + table


ABIS = (ABI_X86_64, ABI_X86_32)


def seeds(directory: Path) -> Path:
    """A corpus to begin with."""
    rng = random.Random(SEED)
    directory.mkdir()
    for number in range(16):
        flags = rng.choice((0, PERSISTENT)) | rng.choice((0, MAPPED, CALLBACKS))
        flags |= DISCARD | BARRIER
        (directory / str(number)).write_bytes(a_frontend(rng, ABIS[number % 2], flags))
    return directory


class Fuzzer:
    """Runs until it has found something, or for so many seconds; killed by `close`.

    Args:
        work: an empty directory of its own.
        engine: the sources.
        seconds: how long.
        nice: how much it gives way to others.
    """

    def __init__(self, work: Path, engine: Path, seconds: int, *, nice: int = 0) -> None:
        self._limit = seconds + 120
        corpus = work / "corpus"
        corpus.mkdir()
        self._log = work / "log"
        command = [
            compiled(work, engine), f"-max_total_time={seconds}", f"-seed={SEED}",
            "-max_len=100000", "-timeout=30", "-print_final_stats=1",
            f"-artifact_prefix={work}/", corpus, seeds(work / "seeds"),
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["nice", "-n", str(nice), *map(os.fspath, command)], stdout=log, stderr=log
            )

    def wait(self) -> tuple[int, str]:
        """Its status, and what it said.  One that does not end is killed."""
        try:
            status = self._process.wait(self._limit)
        finally:
            self.close()
        return status, self._log.read_text(errors="replace")

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
