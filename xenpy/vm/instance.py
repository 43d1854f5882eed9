# SPDX-License-Identifier: MIT
"""The machine of `xenvm up`: a supervisor process of its own that outlives the command.

    instances/NAME/lock         flock held by the supervisor: it lives as long as that
    instances/NAME/in-use       flock shared by whoever uses the machine
    instances/NAME/info.json    written when the machine is ready
    instances/NAME/death        why it died, if it did not end by `down` or by idleness

A lock file whose holder is dead is no lock: the kernel dropped it, and the next `up`
clears what is left.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO

from xenpy.vm import progress
from xenpy.vm.cache import Cache, remove_tree
from xenpy.vm.errors import UsageError, VmDiedError, VmError
from xenpy.vm.machine import DEFAULT_PATIENCE
from xenpy.vm.qemu import Machine

__all__ = ["Info", "Instance"]

STOP_TIMEOUT = 20.0
LOCK_PATIENCE = 1.0
"""Seconds: who only asks whether it runs holds the lock too, for an instant."""


@dataclass(frozen=True)
class Info:
    """What is known about a running instance.

    An older version, whose machine may still run, wrote nothing of what has a default.
    """

    name: str
    release: str
    xen: str
    accelerator: str
    store: str
    pid: int
    qemu_pid: int
    port: int
    started: float
    idle_seconds: float
    init: str = Machine.init
    cpus: int = Machine.cpus
    memory: int = Machine.memory
    patience: float = DEFAULT_PATIENCE


class Instance:
    """One named instance, running or not."""

    def __init__(self, cache: Cache, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}", name):
            raise UsageError(
                f"not a name for an instance: {name!r}", hint="use letters, digits, '-' and '_'"
            )
        self.name = name
        self.directory = cache.root / "instances" / name

    @classmethod
    def all(cls, cache: Cache) -> list[Instance]:
        """Every instance that left a directory."""
        parent = cache.root / "instances"
        names = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
        return [cls(cache, name) for name in names]

    def is_running(self) -> bool:
        """True while the supervisor holds its lock and the machine is ready."""
        return self._is_held() and (self.directory / "info.json").exists()

    def info(self) -> Info:
        """What `up` wrote down.  Raises VmError if it does not run."""
        try:
            return Info(**json.loads((self.directory / "info.json").read_text()))
        except FileNotFoundError:
            raise VmError(
                f"no instance {self.name!r} is running", hint="start it with `xenvm up`"
            ) from None

    def check(self) -> None:
        """Raise why the machine is gone, if it is."""
        if self._is_held():
            return
        try:
            words = (self.directory / "death").read_text()
        except FileNotFoundError:
            words = ""
        raise VmDiedError(
            f"the instance {self.name!r} is gone", details=words, hint="`xenvm up` starts a new one"
        )

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Be the supervisor.  Raises VmError if another one lives."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("a+") as lock:
            self._lock(lock)
            # First of all: until then `down` would signal the dead holder's process id.
            lock.seek(0)
            lock.truncate()
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            if self._clear():
                progress.note(f"cleared what a dead instance {self.name!r} left behind")
            yield
            self._clear()

    def _lock(self, lock: IO[str]) -> None:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise VmError(
                        f"instance {self.name!r} is running already",
                        hint="`xenvm status` shows it, `xenvm down` ends it; --name makes another",
                    ) from None
                time.sleep(0.01)
            else:
                return

    def write_info(self, info: Info) -> None:
        """Say that the machine is ready."""
        partial = self.directory / ".info.json"
        partial.write_text(json.dumps(asdict(info)) + "\n")
        partial.rename(self.directory / "info.json")

    @contextmanager
    def in_use(self) -> Generator[None, None, None]:
        """Keep the supervisor from ending the machine for idleness."""
        with (self.directory / "in-use").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            try:
                yield
            finally:
                os.utime(handle.fileno())

    def last_used(self) -> float:
        """When the machine was used last, as time.time(); now, if it is being used."""
        with (self.directory / "in-use").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return time.time()
            return os.fstat(handle.fileno()).st_mtime

    def stop(self) -> bool:
        """End the machine and its supervisor; False if it did not run.

        What a supervisor that was killed left behind is removed.
        """
        if not self._is_held():
            was_there = self.directory.is_dir()
            remove_tree(self.directory)
            if was_there:
                progress.note(f"removed what a dead instance {self.name!r} left behind")
            return False
        pid = self._holder()
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT
        while self._is_held():
            if time.monotonic() > deadline:
                # Its QEMU dies with it (pdeathsig).
                os.kill(pid, signal.SIGKILL)
                deadline += STOP_TIMEOUT
            time.sleep(0.02)
        remove_tree(self.directory)
        return True

    def _holder(self) -> int:
        text = (self.directory / "lock").read_text().strip()
        if not text.isdigit():
            raise VmError(f"{self.directory / 'lock'} holds no process id")
        return int(text)

    def _is_held(self) -> bool:
        try:
            with (self.directory / "lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True

    def _clear(self) -> bool:
        """Remove all but what is of use without a machine; True if there was a machine's disk."""
        was_there = (self.directory / "disk.qcow2").exists()
        for entry in self.directory.iterdir():
            if entry.name not in ("lock", "in-use", "supervisor.log", "death"):
                remove_tree(entry)
        return was_there
