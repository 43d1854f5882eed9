# SPDX-License-Identifier: MIT
"""Builds the CFFI extensions; never imports them.

`python3 -m xenpy._ffi.build [OUTDIR]` compiles into OUTDIR/xenpy, by default into the source
tree; setup.py hands the same functions to setuptools.  `_ffi._stable` is needed; `_ffi._xenctrl`
links libxenctrl, whose ABI changes with every Xen release, and may fail to build.  A driver's
native engine is an extension of its own, beside the driver.

Environment:
    XENPY_WERROR=1: warnings of the C compiler are errors.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

from cffi import FFI

__all__ = ["EXTENSIONS", "block_engine", "block_worker", "main", "stable", "xenctrl"]

_HERE = Path(__file__).resolve().parent
_PACKAGE = _HERE.parent
_INCLUDE = _PACKAGE / "include"
_HEADERS = [
    str(_INCLUDE / "xenpy" / name)
    for name in ("ring_core.h", "calls.h", "duplex.h", "quiet.h", "trace.h", "peek.h")
]
_STABLE_LIBRARIES = ["xengnttab", "xenevtchn"]


def _arguments() -> list[str]:
    # As Python.h defines it.
    arguments = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-D_GNU_SOURCE=1"]
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
        include_dirs=[str(_INCLUDE)],
        depends=_HEADERS,
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
        "#include <xenctrl.h>\n#include <xenpy/quiet.h>\n",
        include_dirs=[str(_INCLUDE)],
        depends=_HEADERS,
        libraries=["xenctrl"],
        extra_compile_args=_arguments(),
        optional=True,
    )
    return ffi


def block_engine() -> FFI:
    """xenpy.drivers.block._engine."""
    return _engine("block")


def _engine(driver: str) -> FFI:
    """A driver's native engine: all C files of its `engine` directory as one, so that the
    compiler sees through them; `cdef.h` there says what Python calls."""
    directory = _PACKAGE / "drivers" / driver / "engine"
    sources = sorted(directory.glob("*.c"))
    ffi = FFI()
    ffi.cdef((directory / "cdef.h").read_text())
    ffi.set_source(
        f"xenpy.drivers.{driver}._engine",
        "".join(f'#include "{source.name}"\n' for source in sources),
        include_dirs=[str(directory), str(_INCLUDE)],
        depends=[*_HEADERS, *(str(path) for path in directory.iterdir())],
        extra_compile_args=_arguments(),
    )
    return ffi


def block_worker(top: Path) -> Path:
    """Compile xenpy-block-worker, the block engine as a program, below `top`.

    Returns where it is.

    Raises CalledProcessError if it does not compile.
    """
    engine = _PACKAGE / "drivers" / "block" / "engine"
    target = top / "xenpy" / "drivers" / "block" / "xenpy-block-worker"
    target.parent.mkdir(parents=True, exist_ok=True)
    sources = [*sorted(engine.glob("[!p]*.c")), *engine.glob("worker/*.c")]
    # With the compiler of this Python's own extensions; as one unit, as they are.
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    subprocess.run(
        [*compiler, *_arguments(), f"-I{engine}", f"-I{_INCLUDE}", "-x", "c", "-", "-x", "none",
         *shlex.split(os.environ.get("LDFLAGS", "")), "-o", str(target),
         *(f"-l{name}" for name in _STABLE_LIBRARIES)],
        input="".join(f'#include "{source}"\n' for source in sources), text=True, check=True,
    )  # fmt: skip
    return target


EXTENSIONS: Mapping[str, Callable[[], FFI]] = {
    "xenpy._ffi._stable": stable,
    "xenpy._ffi._xenctrl": xenctrl,
    "xenpy.drivers.block._engine": block_engine,
}
"""By the name of the module that each builds."""


def main(arguments: list[str]) -> int:
    """Compile all of them into the directory given.  Returns the exit status.

    Raises cffi's VerificationError if one that is needed does not compile.
    """
    top = Path(arguments[0]) if arguments else _PACKAGE.parent
    for module, extension in EXTENSIONS.items():
        *packages, name = module.split(".")
        directory = top.joinpath(*packages)
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob(f"{name}.*.so"):
            old.unlink()
        # As setuptools names it: of two names, one would hide what is built later.
        built = extension().compile(tmpdir=str(top), target=f"{name}.abi3.so")
        if Path(built).exists():
            print(built)
        else:
            print(f"{module} does not compile and is left out", file=sys.stderr)
    print(block_worker(top))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
