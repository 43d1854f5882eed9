# SPDX-License-Identifier: MIT
"""Where an NBD server is: QEMU's `nbd:unix:PATH` and the URIs of NBD's doc/uri.md."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["NbdAddress"]

PORT: Final = 10809
TCP_OPTIONS: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)
"""A host that has answered nothing for 30 s, not even an empty probe, is gone (tcp(7): the
last but one is in milliseconds, the others in seconds)."""
FORMS: Final = "nbd:unix:/path, nbd://host:port/export or nbd+unix:///export?socket=/path"


@dataclass(frozen=True, slots=True)
class NbdAddress:
    """A server and what it exports.

    Attributes:
        path: of its Unix socket, or "".
        host, port: of its TCP port, where `path` is "".
        export: the export's name.
    """

    path: str
    host: str
    port: int
    export: str

    @classmethod
    def parse(cls, text: str) -> NbdAddress:
        """Raises ValueError: `text` is none of `FORMS`."""
        if text.startswith("nbd:unix:"):
            path, _, export = text.removeprefix("nbd:unix:").partition(":exportname=")
            return cls._unix(text, path, export)
        parts = urlsplit(text)
        if parts.scheme in ("nbds", "nbds+unix"):
            raise ValueError(f"{text!r}: TLS is not served here; give {FORMS}")
        export = unquote(parts.path.removeprefix("/"))
        if parts.scheme == "nbd+unix" and not parts.netloc:
            query = dict(parse_qsl(parts.query))
            if set(query) != {"socket"}:
                raise ValueError(f"{text!r} needs socket=/path, and takes nothing else")
            return cls._unix(text, query["socket"], export)
        if parts.scheme == "nbd" and parts.hostname and not parts.query and parts.username is None:
            return cls("", parts.hostname, parts.port or PORT, export)
        raise ValueError(f"{text!r} is no NBD server; give {FORMS}")

    @classmethod
    def _unix(cls, text: str, path: str, export: str) -> NbdAddress:
        if not path.startswith("/"):
            raise ValueError(f"{text!r}: the path of a socket is absolute")
        return cls(path, "", 0, export)

    def connect(self, bound: float) -> socket.socket:
        """A fresh connection.

        Raises:
            OSError: there is no server, or none that answers within `bound` seconds.
        """
        if not self.path:
            connection = socket.create_connection((self.host, self.port), bound)
            for level, name, value in TCP_OPTIONS:
                connection.setsockopt(level, name, value)
            return connection
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(bound)
            connection.connect(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def __str__(self) -> str:
        where = self.path or f"{self.host}:{self.port}"
        return f"the NBD server at {where}"
