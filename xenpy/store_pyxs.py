# SPDX-License-Identifier: MIT
"""All that xenpy takes from pyxs: numbers of operations, `Packet`, paths, connections.

pyxs 0.4.1 (PyPI, 2016) and Debian's 0.4.2~git are both untyped and made for threads;
their quirks end in this module.  What Linux's xenbus device and xenstored say on the
wire is in xen/include/public/io/xs_wire.h.
"""

from __future__ import annotations

import errno
import importlib
import os
import socket
import stat
import warnings
from collections.abc import Iterable
from enum import IntEnum
from types import ModuleType
from typing import Final, Protocol, cast

from xenpy.errors import XenNotFoundError, xen_error

__all__ = ["Connection", "Op", "Packet", "connect", "default_path", "is_device", "make_packet"]


def _import(name: str) -> ModuleType:
    with warnings.catch_warnings():
        # Code of 2016: what a newer compiler says about its escapes and imports is no news.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(name)


_internal: Final = _import("pyxs._internal")
_connection: Final = _import("pyxs.connection")
_exceptions: Final = _import("pyxs.exceptions")


def _number(name: str) -> int:
    return cast(int, getattr(_internal.Op, name))


class Op(IntEnum):
    """Operations of xenstored: pyxs's numbers, and the one that pyxs lacks.

    RESET_WATCHES (21) is left out on purpose: sent through /dev/xen/xenbus it drops the
    kernel's own watches.
    """

    DIRECTORY = _number("DIRECTORY")
    READ = _number("READ")
    GET_PERMS = _number("GET_PERMS")
    WATCH = _number("WATCH")
    UNWATCH = _number("UNWATCH")
    TRANSACTION_START = _number("TRANSACTION_START")
    TRANSACTION_END = _number("TRANSACTION_END")
    GET_DOMAIN_PATH = _number("GET_DOMAIN_PATH")
    WRITE = _number("WRITE")
    MKDIR = _number("MKDIR")
    RM = _number("RM")
    SET_PERMS = _number("SET_PERMS")
    WATCH_EVENT = _number("WATCH_EVENT")
    ERROR = _number("ERROR")
    IS_DOMAIN_INTRODUCED = _number("IS_DOMAIN_INTRODUCED")
    DIRECTORY_PART = 22


class Packet(Protocol):
    """pyxs's `Packet`, as a type checker sees it: a tuple of these, in this order."""

    @property
    def op(self) -> int: ...
    @property
    def rq_id(self) -> int: ...
    @property
    def tx_id(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def payload(self) -> bytes: ...


class _PacketType(Protocol):
    def _make(self, fields: Iterable[object]) -> Packet: ...


_Packet: Final = cast(_PacketType, _internal.Packet)
_build: Final = _Packet._make  # pyright: ignore[reportPrivateUsage]  # public in a namedtuple


def make_packet(op: int, rq_id: int, tx_id: int, payload: bytes) -> Packet:
    """Make a pyxs `Packet` without its constructor.

    That one refuses operations it does not know (DIRECTORY_PART), oxenstored's long
    answers to DIRECTORY, and in 0.4.1 some empty payloads.  The bounds are `store_wire`'s.
    """
    return _build((op, rq_id, tx_id, len(payload), payload))


class Connection(Protocol):
    """pyxs's `UnixSocketConnection` or `XenBusConnection`."""

    path: str
    transport: object

    def connect(self) -> None: ...
    def fileno(self) -> int: ...
    def close(self, silent: bool = True) -> None: ...


def default_path() -> str:
    """Where xenstored is: its socket, or the kernel's device in a domain without one.

    XENSTORED_PATH and XENSTORED_RUNDIR are honoured, as by libxenstore.

    Raises:
        XenNotFoundError: neither is there.
    """
    unix = cast(Connection, _connection.UnixSocketConnection(None))
    if os.environ.get("XENSTORED_PATH") or os.environ.get("XENSTORED_RUNDIR"):
        return unix.path
    device = cast(Connection, _connection.XenBusConnection(None))
    for path in ("/run/xenstored/socket", unix.path, device.path):
        if os.path.exists(path):
            return path
    hint = f"neither {unix.path} nor {device.path}: is this a Xen domain, does xenstored run?"
    raise XenNotFoundError(errno.ENOENT, "open", hint, path="xenstore")


def is_device(path: str) -> bool:
    """Is it the kernel's /dev/xen/xenbus, and not a socket?"""
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return False


def connect(path: str) -> Connection:
    """Connect without ever blocking.

    Raises:
        XenError: EAGAIN when xenstored's backlog is full (it listens with 1): try again;
            otherwise what the kernel says.
    """
    try:
        return _open_device(path) if is_device(path) else _connect_socket(path)
    except OSError as error:
        hint = "" if error.errno == errno.EAGAIN else "does xenstored run?"
        # "AF_UNIX path too long" comes without a number.
        number = error.errno or errno.ENAMETOOLONG
        raise xen_error(number, "connect", hint, path=path) from error


def _open_device(path: str) -> Connection:
    connection = cast(Connection, _connection.XenBusConnection(path))
    try:
        connection.connect()
    except cast(type[Exception], _exceptions.PyXSError) as error:
        # pyxs turns the number into text; the OSError is still behind it.
        cause = error.__context__
        raise cause if isinstance(cause, OSError) else OSError(errno.EIO, str(error)) from error
    os.set_blocking(connection.fileno(), False)
    return connection


def _connect_socket(path: str) -> Connection:
    connection = cast(Connection, _connection.UnixSocketConnection(path))
    # pyxs's own connect() blocks for as long as a stopped xenstored's backlog is full.
    transport = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        transport.connect(path)
    except BaseException:
        transport.close()
        raise
    connection.transport = transport
    return connection
