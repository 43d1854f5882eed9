# SPDX-License-Identifier: MIT
"""The host's side of the tests: a virtual environment, and a copy of the checkout to run in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from xenpy.vm import progress
from xenpy.vm.build import built_files
from xenpy.vm.cache import Cache, digest
from xenpy.vm.checkout import Checkout
from xenpy.vm.errors import VmError

__all__ = ["ensure", "stage"]


def requirements(root: Path) -> list[str]:
    """What pyproject.toml asks for: to build, to run and to test."""
    with (root / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)
    project = settings["project"]
    wanted = [
        *settings["build-system"]["requires"],
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
    ]
    return sorted(set(wanted))


def ensure(cache: Cache, root: Path) -> Path:
    """The Python of a virtual environment with all `requirements`, made if there is none."""
    wanted = requirements(root)
    final = cache.root / "venv" / digest(sys.version, sys.executable, *wanted)
    python = final / "bin" / "python"
    if (final / "complete").exists():
        return python
    with cache.locked("venv", "making the virtual environment"):
        if (final / "complete").exists():
            return python
        cache.need_space(800, "the virtual environment")
        log = cache.directory("log") / "venv.log"
        # Not by rename, as everything else: a virtual environment knows its own path.
        with progress.step("making the virtual environment of the tests"), log.open("wb") as output:
            for command in (
                [sys.executable, "-m", "venv", "--clear", os.fspath(final)],
                [os.fspath(python), "-m", "pip", "install", "--disable-pip-version-check", *wanted],
            ):
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
                )
                if done.returncode:
                    raise VmError(
                        f"cannot make the virtual environment: status {done.returncode} of "
                        f"{' '.join(command[:4])}",
                        details="\n".join(log.read_text(errors="replace").splitlines()[-15:]),
                        hint="pip must reach the packages of pyproject.toml's `dev` extra",
                    )
            (final / "complete").touch()
        cache.sweep(final.parent, [final], limit=2)
    return python


def stage(cache: Cache, checkout: Checkout, python: Path, directory: Path) -> Path:
    """Unpack the checkout below `directory`, with its C part built for this host.

    Warnings of the compiler are errors here.  Returns the copy's top.
    """
    tree = directory / "xenpy-checkout"
    tree.mkdir()
    subprocess.run(["tar", "-C", tree, "-xf", "-"], input=checkout.pack(), check=True)
    final = cache.root / "host-build" / digest(os.fspath(python), checkout.c_key())
    if not final.is_dir():
        with cache.locked(f"host-build-{final.name}", "building xenpy's C part for this host"):
            if not final.is_dir():
                _build(cache, python, tree, final)
    for path in built_files(final):
        shutil.copy(path, tree / path.relative_to(final))
    return tree


def _build(cache: Cache, python: Path, tree: Path, final: Path) -> None:
    with progress.step("building xenpy's C part for this host"), cache.building(final) as work:
        done = subprocess.run(
            [python, "-W", "ignore", "-m", "xenpy._ffi.build", work],
            cwd=tree, env={**os.environ, "XENPY_WERROR": "1"}, text=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            raise VmError("xenpy's C part does not compile", details=done.stdout)
    cache.sweep(final.parent, [final], limit=4)
