# SPDX-License-Identifier: MIT
"""The C compiler, for tests that ask the installed Xen headers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import xenpy

__all__ = ["compile_c"]

INCLUDE = xenpy.get_include()
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE=1", "-O2", "-Wall", "-Wextra", "-Werror")


def compile_c(source: Path, output: Path, *flags: str, compiler: str = "gcc") -> Path:
    """Compile one C file against the ring core and the Xen headers.  Returns `output`."""
    command = [compiler, *FLAGS, f"-I{INCLUDE}", str(source), "-o", str(output), *flags]
    subprocess.run(command, check=True)
    return output
