# SPDX-License-Identifier: MIT
"""Builds the two CFFI extensions; never imports them.

`python3 -m xenpy._ffi.build [OUTDIR]` compiles into OUTDIR/xenpy/_ffi, by default into the
source tree; setup.py hands the same functions to setuptools.  `_stable` is needed; `_xenctrl`
links libxenctrl, whose ABI changes with every Xen release, and may fail to build.

Environment:
    XENPY_WERROR=1: warnings of the C compiler are errors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from cffi import FFI

__all__ = ["EXTENSIONS", "main", "stable", "xenctrl"]

_HERE = Path(__file__).resolve().parent
_STABLE_LIBRARIES = ["xengnttab", "xenevtchn"]


def _arguments() -> list[str]:
    arguments = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]
    if os.environ.get("XENPY_WERROR") == "1":
        arguments.append("-Werror")
    return arguments


def stable() -> FFI:
    """xenpy._ffi._stable: the libraries with a stable ABI, the shim and the ring core."""
    ffi = FFI()
    ffi.cdef((_HERE / "stable.h").read_text())
    ffi.set_source(
        "xenpy._ffi._stable",
        (_HERE / "shim.c").read_text(),
        include_dirs=[str(_HERE)],
        depends=[str(_HERE / "ring_core.h"), str(_HERE / "quiet.h")],
        libraries=_STABLE_LIBRARIES,
        extra_compile_args=_arguments(),
    )
    return ffi


def xenctrl() -> FFI:
    """xenpy._ffi._xenctrl: what only dom0's libxenctrl knows."""
    ffi = FFI()
    ffi.cdef((_HERE / "xenctrl.h").read_text())
    ffi.set_source(
        "xenpy._ffi._xenctrl",
        '#include <xenctrl.h>\n#include "quiet.h"\n',
        # -iquote, not -I: a cdef file here has the name of Xen's own <xenctrl.h>.
        libraries=["xenctrl"],
        extra_compile_args=[f"-iquote{_HERE}", *_arguments()],
        depends=[str(_HERE / "quiet.h")],
        optional=True,
    )
    return ffi


EXTENSIONS: tuple[Callable[[], FFI], ...] = (stable, xenctrl)
"""Each builds the extension that has its name after an underscore."""


def main(arguments: list[str]) -> int:
    """Compile all of them into the directory given.  Returns the exit status.

    Raises cffi's VerificationError if one that is needed does not compile.
    """
    top = Path(arguments[0]) if arguments else _HERE.parent.parent
    directory = top / "xenpy" / "_ffi"
    directory.mkdir(parents=True, exist_ok=True)
    for extension in EXTENSIONS:
        name = f"_{extension.__name__}"
        for old in directory.glob(f"{name}.*.so"):
            old.unlink()
        # As setuptools names it: of two names, one would hide what is built later.
        built = extension().compile(tmpdir=str(top), target=f"{name}.abi3.so")
        if Path(built).exists():
            print(built)
        else:
            print(f"xenpy._ffi.{name} does not compile and is left out", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
