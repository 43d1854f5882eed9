# SPDX-License-Identifier: MIT
"""QEMU's control protocol (QMP, docs/interop/qmp-spec.rst in QEMU), as far as used."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import time
from pathlib import Path
from typing import Any

from xenpy.vm.errors import VmDiedError, VmError

__all__ = ["Qmp", "connect_unix", "parse_forwarded_port"]

TIMEOUT = 60.0
LISTEN_PATIENCE = 1.0
"""Seconds from the moment in which a socket is there to that in which somebody listens."""


def connect_unix(path: Path, timeout: float) -> socket.socket:
    """Connect to the unix socket `path`, however long its name is.

    Raises:
        OSError: there is no such socket, or nobody listens, nor is about to.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        deadline = time.monotonic() + LISTEN_PATIENCE
        while True:
            try:
                connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    connection.close()
                    raise
                time.sleep(0.01)
            except OSError:
                connection.close()
                raise
            else:
                return connection
    finally:
        os.close(directory)


class Qmp:
    """A QMP connection.  A context manager; one command at a time."""

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        self._socket = connect_unix(path, timeout)
        self._stream = self._socket.makefile("rwb")
        self._receive()
        self.execute("qmp_capabilities")

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; QEMU goes on."""
        self._stream.close()
        self._socket.close()

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a command; returns its "return" value.  Raises VmError with QEMU's words."""
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = {
                name.replace("_", "-"): value for name, value in arguments.items()
            }
        try:
            self._stream.write(json.dumps(request).encode() + b"\n")
            self._stream.flush()
            while True:
                answer = self._receive()
                if "error" in answer:
                    raise VmError(f"QEMU refused {command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except (OSError, ValueError) as error:
            raise VmDiedError(f"QEMU did not answer {command}: {error}") from error

    def monitor(self, line: str) -> str:
        """Run a command of the human monitor; returns what it prints."""
        return str(self.execute("human-monitor-command", command_line=line))

    def forwarded_port(self) -> int:
        """The port on 127.0.0.1 that leads to dom0's ssh."""
        return parse_forwarded_port(self.monitor("info usernet"))

    def save_state(self, path: Path) -> None:
        """Stop the machine and write its state (not its disk) to `path`."""
        self.execute("stop")
        self._no_bandwidth_limit()
        self.execute("migrate", uri=f"exec:cat > {shlex.quote(os.fspath(path))}")
        self._migrated("saving the snapshot")

    def load_state(self, path: Path) -> None:
        """Load a state into a machine that was started with `-incoming defer`, and run it."""
        self.execute("migrate-incoming", uri=f"exec:cat {shlex.quote(os.fspath(path))}")
        self._migrated("loading the snapshot")
        self.execute("cont")

    def _no_bandwidth_limit(self) -> None:
        self.execute("migrate-set-parameters", max_bandwidth=1 << 40)

    def _migrated(self, what: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            status = self.execute("query-migrate").get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise VmError(f"{what}: QEMU says {status}")
            time.sleep(0.02)
        raise VmError(f"{what}: QEMU did not finish within {TIMEOUT:.0f} s")

    def _receive(self) -> Any:
        line = self._stream.readline()
        if not line:
            raise OSError("connection closed")
        return json.loads(line)


def parse_forwarded_port(text: str) -> int:
    """Find the port in the output of `info usernet`."""
    found = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s", text)
    if not found or found[1] == "0":
        raise VmError(f"QEMU forwards no port: {text!r}")
    return int(found[1])
