# SPDX-License-Identifier: MIT
"""One running QEMU: starting it, watching it, saying why it is gone.

QEMU is a child that the kernel kills with us (setpriv --pdeathsig), whatever ends us.
dom0 writes a line to a virtio-serial port once a second; if none comes for `patience`
seconds while QEMU runs, the machine is ended rather than waited for.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from xenpy.vm import console
from xenpy.vm.cache import Cache, remove_tree
from xenpy.vm.errors import BootTimeoutError, VmDiedError
from xenpy.vm.image import Image
from xenpy.vm.qemu import Machine, Sockets, command_line
from xenpy.vm.qmp import Qmp, connect_unix

__all__ = ["DEFAULT_PATIENCE", "Vm", "make_overlay", "scratch_directory", "tied_to_us"]

DEFAULT_PATIENCE = 120.0
BOOT_TIMEOUT = 240.0
FULL = 16 << 20
"""A disk with fewer bytes free is full."""


def tied_to_us(argv: list[str]) -> list[str]:
    """`argv` as a command that the kernel kills when the thread that starts it is gone."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *argv]


def make_overlay(base: Path, kind: str, overlay: Path) -> None:
    """Make a qcow2 file that holds only the differences to `base`."""
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", kind, overlay],
        check=True,
        stdin=subprocess.DEVNULL,
    )


@contextmanager
def scratch_directory(cache: Cache) -> Generator[Path, None, None]:
    """A directory for one run.  Those of processes that were killed are removed on the way."""
    parent = cache.directory("run")
    with cache.locked("run", "making a run directory"):
        # Under the lock: another's new directory is not yet locked itself.
        for entry in parent.iterdir():
            with suppress(OSError), (entry / "lock").open("a") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(entry)
        path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}.", dir=parent))
        lock = (path / "lock").open("a")
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        remove_tree(path)
        lock.close()


class Vm:
    """A running machine.  A context manager: leaving it ends QEMU.

    Attributes:
        directory: its sockets and logs.
        port: the port on 127.0.0.1 that leads to dom0's sshd.
    """

    def __init__(
        self, image: Image, machine: Machine, directory: Path, *, patience: float = DEFAULT_PATIENCE
    ) -> None:
        self.image = image
        self.machine = machine
        self.directory = directory
        self.patience = patience
        self.port = 0
        self.death: VmDiedError | None = None
        self._on_death: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._beat = threading.Event()
        self._qemu: subprocess.Popen[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Vm:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def console_log(self) -> Path:
        """The file that the serial console is written to."""
        return self.directory / Sockets.CONSOLE_LOG

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        assert self._qemu is not None
        return self._qemu.pid

    def start(self, disk: Path, state: Path | None = None) -> None:
        """Start QEMU on `disk`: a cold boot, or the snapshot in `state`.

        Returns when dom0 is ready (cold) or runs again (snapshot).
        """
        command = command_line(
            self.machine,
            xen=self.image.xen,
            kernel=self.image.kernel,
            initrd=self.image.initrd,
            disk=disk,
            incoming=state is not None,
        )
        self._log = (self.directory / "qemu.log").open("ab")
        self._qemu = subprocess.Popen(
            tied_to_us(command),
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            # Ctrl-C in the terminal is for us and for the command in dom0.
            start_new_session=True,
        )
        self._wait_for_sockets()
        self._watcher = threading.Thread(target=self._watch, name="xenvm-watch", daemon=True)
        self._watcher.start()
        with self.qmp() as qmp:
            if state is not None:
                qmp.load_state(state)
            self.port = qmp.forwarded_port()
        if state is None:
            self._wait_for_beat()

    def qmp(self) -> Qmp:
        """A new QMP connection."""
        try:
            return Qmp(self.directory / Sockets.QMP)
        except OSError as error:
            self.check()
            raise VmDiedError(f"QEMU does not answer: {error}") from error

    def on_death(self, callback: Callable[[], None]) -> None:
        """Call `callback` (in the watching thread) when the machine dies by itself."""
        with self._lock:
            if self.death is None:
                self._on_death.append(callback)
                return
        callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Undo `on_death`."""
        with self._lock, suppress(ValueError):
            self._on_death.remove(callback)

    def check(self) -> None:
        """Raise the reason if the machine has died."""
        if self.death is not None:
            raise self.death
        if self._qemu is not None and self._qemu.poll() is not None and not self._stopping.is_set():
            raise self._obituary()

    def end(self) -> None:
        """End QEMU.  Twice is harmless."""
        self._stopping.set()
        if self._qemu is not None and self._qemu.poll() is None:
            self._qemu.kill()
            self._qemu.wait()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()
            self._watcher = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def wait(self) -> None:
        """Wait until QEMU has ended."""
        assert self._qemu is not None
        self._qemu.wait()

    def _wait_for_sockets(self) -> None:
        deadline = time.monotonic() + 30
        while not (self.directory / Sockets.QMP).exists():
            self.check()
            if time.monotonic() > deadline:
                raise VmDiedError("QEMU did not start within 30 s", details=self._qemu_output())
            time.sleep(0.01)

    def _wait_for_beat(self) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not self._beat.wait(0.2):
            self.check()
            if time.monotonic() > deadline:
                raise BootTimeoutError(
                    f"dom0 was not ready within {BOOT_TIMEOUT:.0f} s",
                    details=console.last_lines(self.console_log),
                    hint="the host may be overloaded; see the console above",
                )

    def _watch(self) -> None:
        """Read heartbeats; on silence, a panic or QEMU's end, say so and end the machine."""
        last = time.monotonic()
        connection = None
        try:
            with suppress(OSError):
                connection = connect_unix(self.directory / Sockets.HEARTBEAT, 10)
            while not self._stopping.is_set():
                assert self._qemu is not None
                if self._qemu.poll() is not None:
                    self._die(self._obituary())
                    return
                if connection is None:
                    self._stopping.wait(0.2)
                elif select.select([connection], [], [], 0.2)[0]:
                    if connection.recv(4096):
                        last = time.monotonic()
                        self._beat.set()
                    else:
                        connection.close()
                        connection = None
                silence = time.monotonic() - last
                if self._beat.is_set() and silence > self.patience:
                    self._die(self._silent(silence))
                    return
                panic = console.find_panic(console.read_tail(self.console_log))
                if panic:
                    self._die(self._panicked(panic))
                    return
        finally:
            if connection is not None:
                connection.close()

    def _die(self, reason: VmDiedError) -> None:
        if self._stopping.is_set():
            return
        with self._lock:
            self.death = reason
            callbacks, self._on_death = self._on_death, []
        assert self._qemu is not None
        with suppress(ProcessLookupError):
            self._qemu.kill()
        for callback in callbacks:
            callback()
        # Last, and not at any price: the disk may be full.
        with suppress(OSError):
            (self.directory / "death").write_text(reason.render() + "\n")

    def _obituary(self) -> VmDiedError:
        assert self._qemu is not None
        panic = console.find_panic(console.read_tail(self.console_log))
        if panic:
            return self._panicked(panic)
        status = self._qemu.wait()
        if status < 0:
            how = f"QEMU was killed by {signal.Signals(-status).name}"
            hint = "if nobody did that, look for the out-of-memory killer in dmesg"
        elif status == 0:
            how = "the machine switched itself off"
            hint = "dom0 was shut down or rebooted from inside"
        else:
            how = f"QEMU ended with status {status}"
            hint = "see QEMU's own words above"
        return VmDiedError(how, details=self._last_words(), hint=hint)

    def _panicked(self, panic: str) -> VmDiedError:
        return VmDiedError(panic, details=self._last_words(), hint=self._log_hint())

    def _silent(self, silence: float) -> VmDiedError:
        free = shutil.disk_usage(self.directory).free
        if free < FULL:
            # QEMU stops a machine whose disk cannot grow.
            return VmDiedError(
                f"dom0 has not answered for {silence:.0f} s: the host's disk is full",
                details=self._last_words(),
                hint=f"{free >> 20} MiB are free in {self.directory}: free some, or set "
                "XENVM_CACHE to a directory on a larger disk",
            )
        return VmDiedError(
            f"dom0 has not answered for {silence:.0f} s; the watchdog ended it",
            details=self._last_words(),
            hint="a deadlock in dom0, or a host under heavy load: --watchdog SECONDS waits longer",
        )

    def _log_hint(self) -> str:
        return "the last console lines are above; `xenvm exec --save-console FILE` keeps them all"

    def _last_words(self) -> str:
        return "\n".join(
            text for text in (self._qemu_output(), console.last_lines(self.console_log)) if text
        )

    def _qemu_output(self) -> str:
        return console.last_lines(self.directory / "qemu.log", 5)


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP unwind the program like Ctrl-C, so that machines are ended."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
