# SPDX-License-Identifier: MIT
"""The backend of a guest's further consoles: `xenpy serve console`.

They are devices like others; the first is none, and has `primary`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xenpy.backend import Device, DeviceContext, DeviceError, Keys
from xenpy.drivers.console.hub import Hub
from xenpy.drivers.console.link import Link
from xenpy.drivers.console.pty_outlet import PtyOutlet
from xenpy.drivers.console.settings import LogSettings
from xenpy.drivers.console.socket_outlet import SocketOutlet
from xenpy.peer_keys import number
from xenpy.types import GrantRef, Port

__all__ = ["ConsoleBackend"]


class ConsoleBackend(Device):
    """One console.  It is read and may be typed to whether or not a guest is connected.

    Raises:
        ValueError: it is the first one, of which the toolstack keeps nodes in `backend/console`.
    """

    def __init__(self, context: DeviceContext) -> None:
        if context.devid == 0:
            raise ValueError("the first console is no device: xenpy console take")
        super().__init__(context)
        self._hub = Hub()
        self._link: Link | None = None
        self._wakes = 0
        # Of a console without a pty, too, or the guest would say where it is (XSA-57).
        self._told: dict[str, str] = {"tty": ""}

    async def prepare(self) -> Keys:
        if not self._hub.outlets:
            try:
                self._open(self.context.backend_keys)
            except OSError as error:
                self._hub.close()
                # openpty's, where no devpts is mounted, has a text only.
                why = error.strerror or str(error)
                raise DeviceError(f"{error.filename or 'pty'}: {why}") from error
        return {}

    def _open(self, keys: Mapping[str, str]) -> None:
        hub, context = self._hub, self.context
        if "name" in keys:
            self._told["name"] = keys["name"]
        connection = keys.get("connection", "pty")
        if connection == "pty":
            pty = PtyOutlet(hub)
            hub.outlets.append(pty)
            self._told["tty"] = pty.name
        elif connection == "socket":
            if not keys.get("path"):
                raise DeviceError("connection is socket, and path is missing")
            hub.outlets.append(SocketOutlet(keys["path"], hub))
        elif connection != "none":
            raise DeviceError(f"connection is {connection!r}; give pty, socket or none")
        name = f"console-{context.domid}-{context.devid}"
        own = Path(keys["log"]) if keys.get("log") else None
        log = LogSettings.parse(context.options).open(own, name, context.log)
        if log is not None:
            hub.outlets.append(log)

    def frontend_keys(self) -> Keys:
        """Where `xl console -n DEVID` finds it, and what it is called."""
        return self._told

    async def connect(self, frontend: Mapping[str, str]) -> Keys:
        context = self.context
        ref, port = GrantRef(number(frontend, "ring-ref")), Port(number(frontend, "port"))
        self._link = Link(self._hub, context.xen, context.domid, ref, port, context.on_failure)
        return {}

    async def disconnect(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._wakes += link.wakes
            link.close()

    async def close(self) -> None:
        self._hub.close()

    def stats(self) -> Mapping[str, int]:
        hub, link = self._hub, self._link
        return {
            "printed": hub.printed,
            "typed": hub.accepted,
            "lost": hub.lost,
            "wakeups": self._wakes + (link.wakes if link is not None else 0),
        }
