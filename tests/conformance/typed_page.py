# SPDX-License-Identifier: MIT
"""A page's commands, typed into a shell."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from conformance.daemon_process import PATIENCE, XENPY
from fences import ROOT, Command, agrees, commands, fences

__all__ = ["section", "type_in"]

MARK = "=== status "


def section(page: Path, title: str) -> list[Command]:
    """The commands below a heading."""
    lines = (ROOT / page).read_text().splitlines()
    begin = lines.index(f"## {title}") + 1
    end = next((n for n, line in enumerate(lines[begin:], begin) if line.startswith("## ")), None)
    found = [fence for fence in fences(page) if fence.language == "console"]
    inside = [fence for fence in found if begin < fence.line and (end is None or fence.line <= end)]
    return [command for fence in inside for command in commands(fence)]


def type_in(typed: Sequence[Command]) -> None:
    """In one shell; what is shown must come, and nothing may fail."""
    mark = f"echo '{MARK}'$?"
    script = "".join(f"{command.text}\n{mark}\n" for command in typed)
    xenpy = shlex.join(XENPY)
    done = subprocess.run(
        ["bash", "-c", f'xenpy() {{ {xenpy} "$@"; }}\nset -m\n{script}wait'],
        capture_output=True, text=True, timeout=2 * PATIENCE, check=False,
    )  # fmt: skip
    parts = done.stdout.split(MARK)
    said, statuses = [parts[0]], []
    for part in parts[1:]:
        status, _, rest = part.partition("\n")
        statuses.append(status)
        said.append(rest)
    for command, text, status in zip(typed, said, statuses, strict=False):
        assert status == "0", f"{command}\n{text}\n{done.stderr}"
        assert agrees(command.shown, text), f"{command}\n{text}\n{done.stderr}"
    assert len(statuses) == len(typed), done.stderr
