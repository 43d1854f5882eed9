# SPDX-License-Identifier: MIT
"""Commands in dom0: pass-through of their streams, their exact status, no silent mix-up.

ssh gives 255 both for its own failures and for a command that exits with 255.  The
remote wrapper therefore leaves the status in a file of dom0, and 255 is looked up there.
"""

from __future__ import annotations

import gzip
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from xenpy.vm import build, console
from xenpy.vm.checkout import Checkout
from xenpy.vm.errors import VmDiedError, VmError
from xenpy.vm.machine import Vm, tied_to_us
from xenpy.vm.pushed import NOTHING, Pushed
from xenpy.vm.ssh import Link

__all__ = ["Session"]

SSH_FAILED = 255
MASTER_TIMEOUT = 120.0
DEATH_TIMEOUT = 15.0
"""Seconds for a supervisor to say why its machine died, after the connections to it ended."""


class Session:
    """A master connection to one dom0, and what is run over it.  A context manager.

    `check` raises if the machine has died, and says why.
    """

    def __init__(self, link: Link, check: Callable[[], None], vm: Vm | None = None) -> None:
        self.link = link
        self._check = check
        self._vm = vm
        self._master: subprocess.Popen[bytes] | None = None
        self._serial = 0

    def __enter__(self) -> Session:
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what runs over it gets a hang-up."""
        if self._master is not None:
            self._master.terminate()
            try:
                self._master.wait(5)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.wait()
            self._master = None
            with suppress(FileNotFoundError):
                self._socket.unlink()

    @property
    def _socket(self) -> Path:
        return self.link.directory / self.link.control

    def _connect(self) -> None:
        deadline = time.monotonic() + MASTER_TIMEOUT
        log = self.link.directory / f"{self.link.control}.log"
        while True:
            with log.open("ab") as handle:
                self._master = subprocess.Popen(
                    tied_to_us(self.link.master()),
                    cwd=self.link.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=handle,
                    start_new_session=True,
                )
            while self._master.poll() is None:
                if self._socket.exists():
                    return
                self._check()
                if time.monotonic() > deadline:
                    raise VmDiedError(
                        f"dom0 took no ssh connection in {MASTER_TIMEOUT:.0f} s",
                        details=self._last_lines(),
                        hint=self._log_hint(),
                    )
                time.sleep(0.01)
            self._check()
            if time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-2000:]
                raise VmDiedError(
                    "cannot reach dom0 by ssh",
                    details="\n".join(text for text in (said, self._last_lines()) if text),
                    hint=self._log_hint(),
                )
            time.sleep(0.2)

    def run(
        self,
        command: Sequence[str] | str,
        *,
        cwd: str = "/root/xenpy",
        env: Mapping[str, str] | None = None,
        tty: bool = False,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        timeout: float | None = None,
        hint: str = "",
    ) -> int:
        """Run `command` (words, or a line for the shell) in dom0; returns its exact status.

        A command killed by signal N gives 128 + N.  Raises VmError when the harness, and
        not the command, failed, and on time-out, then with `hint`.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        self._serial += 1
        name = f"/run/xenvm/{os.getpid()}.{self._serial}"
        remote = _wrap(line, name=name, cwd=cwd, env=env or {})
        client = subprocess.Popen(
            self.link.command(remote, tty=tty),
            cwd=self.link.directory,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
        if self._vm is not None:
            self._vm.on_death(client.kill)
        try:
            status = client.wait(timeout)
        except subprocess.TimeoutExpired:
            self._interrupt(name, signal.SIGTERM)
            message = f"timed out after {timeout:.0f} s: {line[:200]}"
            raise VmError(message, details=self._last_lines(), hint=hint) from None
        except BaseException:
            self._interrupt(name, signal.SIGINT)
            raise
        finally:
            if client.poll() is None:
                client.kill()
                client.wait()
            if self._vm is not None:
                self._vm.forget(client.kill)
        if 0 <= status < SSH_FAILED:
            return status
        return self._true_status(name, status)

    def output(self, command: Sequence[str] | str, *, timeout: float = 120.0) -> str:
        """What `command` prints; VmError if it fails."""
        done = self._quick(command, timeout)
        if done.returncode:
            self._check()
            raise VmError(
                f"in dom0, {command if isinstance(command, str) else shlex.join(command)} "
                f"ended with status {done.returncode}",
                details=done.stderr.decode(errors="replace")[-2000:],
            )
        return done.stdout.decode(errors="replace")

    def push(self, checkout: Checkout, built: Path | None, before: Pushed = NOTHING) -> Pushed:
        """Make the checkout and its extensions /root/xenpy in dom0, and set dom0's clock.
        Returns what is there now.

        Args:
            before: what is there; nobody else may use it, for it is changed in its place.
        """
        wanted = Pushed.of(checkout, built)
        gone = before.gone(wanted)
        if before.files and gone is not None:
            changed = before.changed(wanted)
            rest = shlex.join(["rm", "-f", "--", *gone])
            place = f"cd -P /root/xenpy && {rest} && " if gone else "cd -P /root/xenpy && "
            end = ""
        else:
            changed = set(wanted.files)
            name = f"/srv/xenpy/{checkout.c_key()}.{os.getpid()}.{time.monotonic_ns()}"
            place = f"mkdir -p {name} && cd {name} && "
            end = f" && ln -sfn {name} /root/xenpy"
        content = checkout.pack([name for name in checkout.files if name in changed])
        if built is not None:
            content += build.pack_built(built, changed)
        # A tar ends with blocks of zeros; `-i` reads on behind them.  `-P`, or else tar makes the
        # link xenpy/drivers, which has a `..`, only at the end, and what was built goes through it.
        # In an emulated machine to decipher takes longer than to uncompress.
        script = f"date -u -s @{time.time():.0f} > /dev/null; {place}tar -izPxf -{end}"
        done = self._quick(script, 120.0, gzip.compress(content, 1))
        if done.returncode:
            self._check()
            raise VmError(
                "cannot push the checkout into dom0",
                details=done.stderr.decode(errors="replace")[-2000:],
            )
        return wanted

    def _quick(
        self, command: Sequence[str] | str, timeout: float, data: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        line = command if isinstance(command, str) else shlex.join(command)
        try:
            return subprocess.run(
                self.link.command(line),
                cwd=self.link.directory,
                input=data,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self._check()
            raise VmDiedError(
                f"dom0 did not finish within {timeout:.0f} s: {line[:100]}",
                details=self._last_lines(),
                hint=self._log_hint(),
            ) from None

    def _last_lines(self) -> str:
        """The end of the console, if the machine is ours: what it waits for may show there."""
        return "" if self._vm is None else console.last_lines(self._vm.console_log)

    def _log_hint(self) -> str:
        if self._vm is None:
            return "`xenvm logs` shows its console"
        return "--save-console FILE keeps the console"

    def _interrupt(self, name: str, number: signal.Signals) -> None:
        """Signal the process group of a command; a machine of our own dies anyway."""
        if self._vm is None:
            with suppress(VmError):
                self._quick(f"kill -{number.name[3:]} -- -$(cat {name}.pid)", 10.0)

    def _true_status(self, name: str, status: int) -> int:
        self._watch(1.0)
        with suppress(VmError):
            done = self._quick(f"cat {name}", 20.0)
            text = done.stdout.decode(errors="replace").strip()
            if done.returncode == 0 and text.isdigit():
                return int(text)
        # A machine that dies ends its connections before its supervisor has said why.
        self._watch(DEATH_TIMEOUT)
        raise VmDiedError(f"lost the connection to dom0 (ssh ended with status {status})")

    def _watch(self, seconds: float) -> None:
        """Raise why the machine is gone, if that shows within `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._check()
            time.sleep(0.05)


def _wrap(line: str, *, name: str, cwd: str, env: Mapping[str, str]) -> str:
    """The shell text that runs `line`, and leaves its status and its process group."""
    exports = "".join(f"export {key}={shlex.quote(value)}; " for key, value in env.items())
    body = f"cd -P {shlex.quote(cwd)} || exit 125; {exports}{line}"
    return (
        f"echo $$ > {name}.pid; export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "
        f"PYTHONPATH=/root/xenpy LC_ALL=C.UTF-8 HOME=/root; "
        f"sh -c {shlex.quote(body)}; status=$?; echo $status > {name}; exit $status"
    )
