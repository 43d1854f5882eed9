# SPDX-License-Identifier: MIT
"""Builds the two CFFI extensions; never imports them.

`python3 -m xenpy._ffi.build [OUTDIR]` compiles into OUTDIR/xenpy/_ffi, by default into the
source tree.  setup.py names `stable` and `xenctrl` below.  `_stable` is needed; `_xenctrl`
links libxenctrl, whose ABI changes with every Xen release, and may fail to build.

Environment:
    XENPY_WERROR=1: warnings of the C compiler are errors.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cffi import FFI, VerificationError

__all__ = ["main", "stable", "xenctrl"]

# setup.py runs this file by its path, without an importable package around it.
_HERE = Path(__file__).resolve().parent if "__file__" in globals() else Path("xenpy/_ffi").resolve()
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
    )
    return ffi


def main(arguments: list[str]) -> int:
    """Compile both into the directory given.  Returns the exit status."""
    target = Path(arguments[0]) if arguments else _HERE.parent.parent
    (target / "xenpy" / "_ffi").mkdir(parents=True, exist_ok=True)
    print(stable().compile(tmpdir=str(target)))
    try:
        print(xenctrl().compile(tmpdir=str(target)))
    except VerificationError as error:
        print(f"xenpy._ffi._xenctrl is left out: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
