# SPDX-License-Identifier: MIT
"""What `xenpy serve console` and `xenpy attach console` know of this driver."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from xenpy.attach import DevicePlan
from xenpy.driver import Driver
from xenpy.drivers.console.back import ConsoleBackend
from xenpy.drivers.console.settings import OPTIONS, LogSettings
from xenpy.types import DevId
from xenpy.words import Words

__all__ = ["DRIVER", "WORDS", "plan"]

KIND: Final = "xenpy-console"
"""Not `console`, which QEMU looks for if the guest has one, be it for a disk; and where the
toolstack keeps nodes of the first console, which is no device."""
FRONTEND_KIND: Final = "console"
WORDS: Final = ("devid", "connection", "path", "log", "name")
CONNECTIONS: Final = ("pty", "socket", "none")
DEVIDS: Final = range(1, 10)
"""hvc_xen looks at the last digit of the path alone, and 0 is the first console, which is no
device (xencons_probe)."""


def plan(words: Mapping[str, str], kind: str) -> DevicePlan:
    """The nodes of a console, named as libxl names those of a channel.

    Raises:
        ValueError: a word is unknown or makes no sense.
    """
    given = Words("console", words)
    devid = given.number("devid", 1, low=DEVIDS.start, high=DEVIDS.stop - 1)
    connection = given.choice("connection", CONNECTIONS, "socket" if "path" in words else "pty")
    path, log, name = given.text("path"), given.text("log"), given.text("name")
    given.end()
    if devid != int(devid):
        raise ValueError(f"console: devid is {devid:g}; give a whole number")
    if (connection == "socket") != bool(path):
        raise ValueError("console: path=SOCKET goes with connection=socket, and only with it")
    backend: dict[str, str | int] = {"protocol": "vt100", "connection": connection}
    paths = {"path": path, "log": log}
    backend |= {key: str(Path(text).absolute()) for key, text in paths.items() if text}
    backend |= {"name": name} if name else {}
    return DevicePlan(
        frontend_kind=FRONTEND_KIND,
        backend_kind=kind,
        devid=DevId(int(devid)),
        backend_keys=backend,
        frontend_keys={"protocol": "vt100"},
    )


DRIVER: Final = Driver(
    name="console",
    kind=KIND,
    summary="consoles: further hvc terminals of a guest, on a pty, a socket or in a file",
    backend=ConsoleBackend,
    options=OPTIONS,
    plan=plan,
    check_options=LogSettings.parse,
)
