# SPDX-License-Identifier: MIT
"""The C part of the package; all else is in pyproject.toml, whose ext-modules are experimental."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

BUILD = "xenpy/_ffi/build.py"

BUILDER = runpy.run_path(BUILD)


class BuildAll(build_ext):
    """Builds the programs beside the extensions."""

    def run(self) -> None:
        super().run()
        BUILDER["block_worker"](Path("." if self.inplace else self.build_lib).resolve())


setup(
    cmdclass={"build_ext": BuildAll},
    cffi_modules=[f"{BUILD}:{each.__name__}" for each in BUILDER["EXTENSIONS"].values()],
)
