# SPDX-License-Identifier: MIT
"""The user's project: which of its files dom0 gets, and where modules are found there.

It lies in dom0 where it lies here, so that every path in a report is right on both sides.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from xenpy.vm.checkout import Checkout
from xenpy.vm.errors import VmError

__all__ = ["CARRIED", "Project", "carried", "files_of"]

CARRIED = "/srv/carried"
"""Where in dom0 the distributions lie that are carried there."""
SIZE_LIMIT = 64 << 20
_LEFT_OUT = {
    "__pycache__", ".git", ".hg", ".tox", ".nox", ".eggs", "node_modules", ".mypy_cache",
    ".ruff_cache", ".pytest_cache", ".hypothesis", ".cache",
}  # fmt: skip
_PRODUCTS = (".pyc", ".so", ".o")


@dataclass(frozen=True)
class Project:
    """What dom0 gets.

    Attributes:
        root: pytest's rootdir, the same path on both sides.
        files: below it.
        path: directories of modules.
        carry: names of distributions, pure Python, that dom0 needs too.
    """

    root: Path
    files: tuple[str, ...]
    path: tuple[str, ...]
    carry: tuple[str, ...] = ()

    @classmethod
    def scan(cls, root: Path, needed: Iterable[Path], carry: Iterable[str] = ()) -> Project:
        """The project at `root`.

        `needed` are files that it must have, even those that git ignores; what is not below
        `root` is the caller's mistake.  Raises VmError: it is too large, or one of `carry` cannot
        be carried.
        """
        names = set(files_of(root)) | {os.path.relpath(path, root) for path in needed}
        sizes = {name: (root / name).lstat().st_size for name in sorted(names)}
        if (total := sum(sizes.values())) > SIZE_LIMIT:
            largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
            raise VmError(
                f"{root} has {total >> 20} MiB of files, more than the {SIZE_LIMIT >> 20} that "
                f"are copied into dom0; the largest: {', '.join(largest)}",
                hint="is that your project's directory?  What git ignores is not copied, and "
                "--rootdir, or a pyproject.toml with [tool.pytest.ini_options], says where it is",
            )
        found = cls(root, tuple(sizes), tuple(_module_path(root)), tuple(carry))
        for name in found.carry:
            carried(name)
        return found

    @property
    def module_path(self) -> list[str]:
        """Where modules are looked for before xenpy's own directory."""
        return [*self.path, *([CARRIED] if self.carry else [])]

    def pack(self) -> bytes:
        """A tar of the files, by their names below `root`."""
        return Checkout(self.root, self.files).pack()

    def pack_carried(self) -> bytes:
        """A tar of the distributions, to be unpacked at CARRIED."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name in self.carry:
                for target, source in carried(name):
                    tar.add(source, target, recursive=False)
        return buffer.getvalue()


def files_of(root: Path) -> list[str]:
    """What belongs to a project: what git tracks or does not ignore; without git, all but the
    products of tools and virtual environments."""
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", root,
         "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    listed = [name for name in os.fsdecode(done.stdout).split("\0") if name]
    # Nothing: no repository, or this directory is one that the repository ignores.
    names = listed if done.returncode == 0 and listed else _walk(root)
    return sorted(
        name for name in set(names)
        if not name.endswith(_PRODUCTS) and ((root / name).is_file() or (root / name).is_symlink())
    )  # fmt: skip


def _walk(root: Path) -> list[str]:
    found: list[str] = []
    for directory, names, files in os.walk(root):
        here = Path(directory)
        links = [name for name in names if (here / name).is_symlink()]
        names[:] = [
            name for name in names
            if name not in _LEFT_OUT and not (here / name / "pyvenv.cfg").exists()
        ]  # fmt: skip
        found += [os.path.relpath(here / name, root) for name in [*files, *links]]
    return found


def _module_path(root: Path) -> list[str]:
    """The directories of the project that modules are imported from here, in their order; and
    the two usual ones, for an editable install that has no directory in sys.path."""
    here = [os.path.abspath(entry) for entry in sys.path if not entry.endswith(".zip")]
    usual = [os.fspath(root), *([os.fspath(root / "src")] if (root / "src").is_dir() else [])]
    inside = [
        entry for entry in [*here, *usual]
        if Path(entry).is_relative_to(root) and "site-packages" not in Path(entry).parts
        and os.path.isdir(entry)
    ]  # fmt: skip
    return list(dict.fromkeys(inside))


def carried(name: str) -> list[tuple[str, Path]]:
    """The files of an installed distribution: the name below site-packages, and the file.

    Its metadata are among them, so that its entry points are found.  Raises VmError: it is not
    installed, or has compiled parts, which were made for this Python.
    """
    try:
        files = distribution(name).files
    except PackageNotFoundError:
        files = None
    if not files:
        raise VmError(f"xen_carry: no distribution {name!r} with a list of files is installed here")
    found: list[tuple[str, Path]] = []
    for file in files:
        if file.suffix == ".so":
            raise VmError(
                f"xen_carry: {name} has a compiled part, {file}, that dom0's Python cannot load"
            )
        path = Path(str(file.locate()))
        if ".." not in file.parts and file.suffix != ".pyc" and path.is_file():
            found.append((str(file), path))
    return found
