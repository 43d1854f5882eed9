# SPDX-License-Identifier: MIT
"""Counts the bytecodes that this Python executes; the benchmark puts it on PYTHONPATH.

`$XENVM_COUNTS` is a directory.  In it, a file called after the process id holds one 64-bit
number for each thread, mapped, so that whoever reads it makes the process do nothing.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from types import FrameType
from typing import Protocol

THREADS = 4096


class Trace(Protocol):
    """What `sys.settrace` takes."""

    def __call__(self, frame: FrameType, event: str, argument: object, /) -> Trace: ...


def start(directory: str) -> None:
    """Count from here on, in every thread."""
    path = os.path.join(directory, str(os.getpid()))
    with open(path, "w+b") as file:
        file.truncate(8 * THREADS)
        counts = memoryview(mmap.mmap(file.fileno(), 8 * THREADS)).cast("Q")
    slots: dict[int, int] = {}

    def count() -> None:
        thread = threading.get_ident()
        counts[slots.setdefault(thread, len(slots))] += 1

    if sys.version_info >= (3, 12):
        # A trace function misses what a frame executes between its call and its first return.
        monitoring = sys.monitoring
        monitoring.use_tool_id(monitoring.PROFILER_ID, "counted")
        instruction = monitoring.events.INSTRUCTION
        monitoring.register_callback(
            monitoring.PROFILER_ID, instruction, lambda _code, _offset: count()
        )
        monitoring.set_events(monitoring.PROFILER_ID, instruction)
    else:

        def trace(frame: FrameType, event: str, _: object) -> Trace:
            frame.f_trace_opcodes = True
            if event == "opcode":
                count()
            return trace

        threading.settrace(trace)
        sys.settrace(trace)


if "XENVM_COUNTS" in os.environ:
    start(os.environ["XENVM_COUNTS"])
