# SPDX-License-Identifier: MIT
"""The C part of the package; all else is in pyproject.toml, whose ext-modules are experimental."""

from __future__ import annotations

import runpy

from setuptools import setup

BUILD = "xenpy/_ffi/build.py"

setup(cffi_modules=[f"{BUILD}:{each.__name__}" for each in runpy.run_path(BUILD)["EXTENSIONS"]])
