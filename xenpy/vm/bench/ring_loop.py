# SPDX-License-Identifier: MIT
"""In dom0: the engine's ring loop beside one over the macros of ring.h, in one process."""

from __future__ import annotations

import os
from pathlib import Path

from xenpy.vm.disk import run

__all__ = ["ratio"]

CHECKOUT = Path(__file__).resolve().parents[3]
SOURCE = CHECKOUT / "tests/engine/ring_loop.c"
"""It says what is compared."""
INCLUDED = (CHECKOUT / "xenpy/include", CHECKOUT / "drivers/block/engine")


def ratio(directory: Path) -> float:
    """Ours over theirs, by the clock of the machine.

    Args:
        directory: for the program.

    Raises:
        CommandError: it does not compile, or fails.
        OSError: there is no compiler.
    """
    program = directory / "ring_loop"
    flags = ["-std=gnu11", "-D_GNU_SOURCE=1", "-O2", "-pthread"]
    include = [f"-I{os.fspath(path)}" for path in INCLUDED]
    run("gcc", *flags, *include, os.fspath(SOURCE), "-o", os.fspath(program))
    ours, theirs = (float(word) for word in run(os.fspath(program)).split())
    return ours / theirs
