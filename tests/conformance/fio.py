# SPDX-License-Identifier: MIT
"""Stock fio as a witness: it finds every checksum right, or fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xenpy.vm import disk

__all__ = ["OPERATIONS", "SEED", "fio"]

OPERATIONS = 600
SEED = 20261124


def fio(path: Path, *words: str) -> list[dict[str, Any]]:
    """What fio says of its jobs, each of which has `OPERATIONS` to do."""
    text = disk.run(
        "fio", "--name=verify", f"--filename={path}", "--ioengine=libaio", "--direct=1",
        "--rw=randrw", "--bsrange=4k-44k", "--blockalign=4k", "--iodepth=32",
        "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=128", f"--randseed={SEED}",
        f"--number_ios={OPERATIONS}", "--io_size=4g", "--fsync=64", "--output-format=json",
        *words,
    )  # fmt: skip
    jobs: list[dict[str, Any]] = json.loads(text[text.index("{") :])["jobs"]
    return jobs
