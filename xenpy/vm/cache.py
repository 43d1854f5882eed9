# SPDX-License-Identifier: MIT
"""The cache directory: the only place on the host that the harness writes to.

Finished things appear by rename, so a build that was interrupted never looks complete.
Locks are `flock`s, which the kernel drops with the process, so none can go stale.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from xenpy.vm import progress
from xenpy.vm.errors import VmError

__all__ = ["Cache", "digest"]


def digest(*parts: str | bytes) -> str:
    """A short key over `parts`, each framed by its length: none can run into the next."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()[:16]


class Cache:
    """The directories under `root` (`$XENVM_CACHE`, or `~/.cache/xenvm`)."""

    def __init__(self, root: Path | None = None) -> None:
        if root is None:
            base = os.environ.get("XENVM_CACHE") or os.path.join(
                os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "xenvm"
            )
            root = Path(base)
        self.root = root.absolute()

    def __repr__(self) -> str:
        return f"Cache({str(self.root)!r})"

    def directory(self, *names: str) -> Path:
        """The directory `names` below the root, made if it is missing."""
        path = self.root.joinpath(*names)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VmError(
                f"cannot make {path}: {error.strerror}",
                hint="set XENVM_CACHE to a directory that you may write to",
            ) from error
        return path

    def need_space(self, mebibytes: int, what: str) -> None:
        """Refuse before the work starts rather than fail in the middle of it."""
        free = shutil.disk_usage(self.directory()).free >> 20
        if free < mebibytes:
            raise VmError(
                f"no disk space: {what} needs {mebibytes} MiB in {self.root}, {free} MiB are free",
                hint="free some space, or set XENVM_CACHE to a directory on a larger disk",
            )

    @contextmanager
    def locked(self, name: str, what: str) -> Generator[None, None, None]:
        """Hold the lock `name`; waits for another process that holds it, and says so."""
        path = self.directory("locks") / name
        with path.open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                holder = handle.read(32).strip()
                with progress.step(f"waiting for process {holder or '?'} ({what})"):
                    fcntl.flock(handle, fcntl.LOCK_EX)
            handle.seek(0)
            handle.truncate()
            handle.write(f"{os.getpid()}\n")
            handle.flush()
            yield

    @contextmanager
    def building(self, final: Path) -> Generator[Path, None, None]:
        """A directory to build `final` in; renamed to it if the body succeeds, removed if not.

        The caller holds a lock: what there is for `final` is of builds that were killed, and goes.
        """
        self.directory(*final.parent.relative_to(self.root).parts)
        for left in final.parent.glob(f".{final.name}.*"):
            remove_tree(left)
        work = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        try:
            yield work
            remove_tree(final)
            work.rename(final)
        except BaseException:
            remove_tree(work)
            raise

    def sweep(self, directory: Path, keep: Iterable[Path], limit: int) -> None:
        """Remove all but the `limit` youngest entries of `directory`; never those in `keep`."""
        kept = set(keep)
        if not directory.is_dir():
            return
        entries = sorted(
            (entry for entry in directory.iterdir() if not entry.name.startswith(".")),
            key=lambda entry: entry.stat().st_mtime,
            reverse=True,
        )
        for entry in entries[limit:]:
            if entry not in kept:
                remove_tree(entry)


def remove_tree(path: Path) -> None:
    """Remove a file or a whole tree; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
