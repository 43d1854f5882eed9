# SPDX-License-Identifier: MIT
"""What of xenpy goes into dom0: the checkout (or the installed package) and its C part."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from xenpy.vm import progress
from xenpy.vm.cache import digest

__all__ = ["Checkout", "find_root"]

SIZE_LIMIT = 8 << 20
_IGNORED = {"__pycache__", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
_BUILT = ("*.pyc", "*.so", "*.o", "xenpy-*-worker")
"""What a build leaves in a tree: for this host, and not for dom0.  git ignores it."""
_C_NAMES = {"pyproject.toml", "setup.py", "MANIFEST.in"}
_PACKAGE = ("xenpy/", "drivers/")
_DRIVERS = ("drivers/", "xenpy/drivers/")
"""In a checkout, where the second is a link to the first; and in an installed package."""


def find_root() -> Path:
    """The directory that holds the package `xenpy` we were imported from."""
    return Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Checkout:
    """The files of xenpy that dom0 gets, by their names below `root`."""

    root: Path
    files: tuple[str, ...]

    @classmethod
    def scan(cls, root: Path | None = None) -> Checkout:
        """Tracked and untracked files of a git checkout, ignored ones left out.

        Where there is no git (an installed wheel, an unpacked sdist), every file of the
        package and, if it is there, of the source tree around it.
        """
        root = root or find_root()
        listed = _git_files(root) if (root / ".git").exists() else None
        names = listed if listed is not None else _walk(root)
        kept: list[str] = []
        for name in sorted(set(names)):
            path = root / name
            if path.is_symlink():
                kept.append(name)
            elif path.is_file():
                if path.stat().st_size > SIZE_LIMIT:
                    progress.note(f"not pushed, larger than 8 MiB: {name}")
                else:
                    kept.append(name)
        return cls(root, tuple(kept))

    def package(self) -> Checkout:
        """The package without the tests and documentation around it, which are half of it."""
        kept = (name for name in self.files if name in _C_NAMES or name.startswith(_PACKAGE))
        return Checkout(self.root, tuple(kept))

    def c_files(self) -> list[str]:
        """The files that the compiled extensions are made of."""
        return [
            name
            for name in self.files
            if name in _C_NAMES
            or name.startswith(("xenpy/_ffi/", "xenpy/include/"))
            or (name.startswith(_DRIVERS) and name.endswith((".c", ".h")))
        ]

    def c_key(self) -> str:
        """Changes when the extensions must be built again."""
        return digest(*(part for name in self.c_files() for part in (name, self._content(name))))

    def digests(self) -> dict[str, str]:
        """What each file is, by its name: its content, and whether it is a program or a link."""
        found: dict[str, str] = {}
        for name in self.files:
            path = self.root / name
            kind = "link" if path.is_symlink() else f"{_mode(path):o}"
            found[name] = digest(kind, self._content(name))
        return found

    def pack(self, names: list[str] | None = None) -> bytes:
        """A tar of `names` (default: all), the same bytes for the same content."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in self.files if names is None else names:
                path = self.root / name
                info = tarfile.TarInfo(name)
                if path.is_symlink():
                    info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
                    tar.addfile(info)
                else:
                    data = path.read_bytes()
                    status = path.stat()
                    info.size, info.mtime = len(data), int(status.st_mtime)
                    info.mode = _mode(path)
                    tar.addfile(info, io.BytesIO(data))
        return buffer.getvalue()

    def _content(self, name: str) -> bytes:
        path = self.root / name
        return os.readlink(path).encode() if path.is_symlink() else path.read_bytes()


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & 0o100 else 0o644


def _git_files(root: Path) -> list[str] | None:
    done = subprocess.run(
        ["git", "-c", f"safe.directory={root}", "-C", root,
         "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        return None
    return [name for name in os.fsdecode(done.stdout).split("\0") if name]


def _walk(root: Path) -> list[str]:
    # Next to an installed package lie other people's packages: take ours only.
    source = (root / "pyproject.toml").exists()
    tops = [root] if source else [root / "xenpy"]
    found: list[str] = []
    for top in tops:
        for directory, names, files in os.walk(top):
            names[:] = [name for name in names if name not in _IGNORED]
            for name in [*files, *(d for d in names if Path(directory, d).is_symlink())]:
                if not any(fnmatch(name, pattern) for pattern in _BUILT):
                    found.append(os.path.relpath(os.path.join(directory, name), root))
    return found
