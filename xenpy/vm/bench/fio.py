# SPDX-License-Identifier: MIT
"""fio's command line, and what its JSON says."""

from __future__ import annotations

import json
from dataclasses import dataclass

from xenpy.vm.bench.table import SIZE_MIB, Job

__all__ = ["FioError", "Run", "command", "parse"]

SECONDS = 1
"""Of the guest's clock, which counts instructions: 500 million."""


class FioError(Exception):
    """fio did not finish its job; the text is what it said."""


@dataclass(frozen=True)
class Run:
    """What one run of fio did: so many operations in so many nanoseconds of its clock."""

    operations: int
    nanoseconds: int

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations * 1e9 / self.nanoseconds


def command(job: Job, device: str) -> list[str]:
    """fio on one device.

    What fio would spend on its own account, such as the time that each operation took, is
    the same for all rivals and would only make them look alike: it is left out.
    """
    words = [
        "fio", "--name=bench", f"--filename={device}", f"--size={SIZE_MIB}m",
        f"--rw={job.rw}", f"--bs={job.block}", f"--iodepth={job.depth}",
        "--ioengine=libaio", "--direct=1", "--thread", "--norandommap", "--randrepeat=1",
        "--gtod_reduce=1", f"--runtime={SECONDS}", "--time_based", "--output-format=json",
    ]  # fmt: skip
    return [*words, "--fsync=1"] if job.flush else words


def parse(said: str) -> Run:
    """The figures in what fio printed.

    Raises:
        FioError: it printed something else, an operation failed, or it did nothing.
    """
    _, brace, rest = said.partition("{")
    try:
        (job,) = json.loads(brace + rest)["jobs"]
        sides = [job["read"], job["write"]]
        operations = sum(int(side["total_ios"]) for side in sides)
        milliseconds = max(int(side["runtime"]) for side in sides)
        error = int(job["error"])
    except (ValueError, KeyError, TypeError) as wrong:
        raise FioError(f"fio gave no figures: {said.strip()[-500:]!r}") from wrong
    if error:
        raise FioError(f"fio met with errno {error}")
    if not operations or not milliseconds:
        raise FioError("fio did nothing")
    return Run(operations, milliseconds * 1_000_000)
