# SPDX-License-Identifier: MIT
"""The errors of xenpy: errno in, errno out.

Lowest layer: imports nothing of xenpy.  Whatever a Xen library, the kernel or
xenstored refuses becomes a `XenError`, which is an `OSError`, so that callers may
catch the builtin they know (`FileNotFoundError`, `PermissionError`, `TimeoutError`,
`ConnectionError`) without importing anything from here.
"""

from __future__ import annotations

import errno as _errno
import os

__all__ = [
    "PeerError",
    "StaleHandleError",
    "XenConnectionError",
    "XenError",
    "XenExistsError",
    "XenNotFoundError",
    "XenPermissionError",
    "XenTimeoutError",
    "xen_error",
]


class XenError(OSError):
    """An operation on Xen failed.

    Attributes:
        errno: the error number, as the C library or xenstored gave it.
        operation: what was asked for, in the words of the C API ("map_grant_refs").
        arguments: the arguments that matter, by name (domid, refs, path, port ...).
        hint: what to do about it, or "".
    """

    def __init__(self, errno: int, operation: str, hint: str = "", **arguments: object) -> None:
        self.operation = operation
        self.arguments = arguments
        self.hint = hint
        shown = ", ".join(f"{name}={_short(value)}" for name, value in arguments.items())
        text = f"{operation}({shown}): {os.strerror(errno)}"
        super().__init__(errno, f"{text} ({hint})" if hint else text)

    def __reduce__(self) -> tuple[object, ...]:
        # OSError's own would take the whole text for the operation.
        return _again, (type(self), self.errno, self.operation, self.hint, self.arguments)

    def __str__(self) -> str:
        return f"[{_errno.errorcode.get(self.errno or 0, self.errno)}] {self.strerror}"


class XenNotFoundError(XenError, FileNotFoundError):
    """ENOENT: no such path in XenStore, or no such device node."""


class XenPermissionError(XenError, PermissionError):
    """EACCES or EPERM: the hypervisor, the kernel or xenstored said no."""


class XenExistsError(XenError, FileExistsError):
    """EEXIST."""


class XenTimeoutError(XenError, TimeoutError):
    """ETIMEDOUT: no answer within the time allowed."""


class XenConnectionError(XenError, ConnectionError):
    """The connection to xenstored is gone; a reconnect may be under way."""


class StaleHandleError(XenError):
    """The handle was closed, or belongs to another process (it was inherited by fork).

    libxengnttab and libxenevtchn forbid any use but close after fork (xengnttab.h).
    """


class PeerError(Exception):
    """The other side of a device broke the protocol.

    Never a fault of the caller: the device is closed, the event counted, and
    everything else goes on.
    """


_BY_ERRNO: dict[int, type[XenError]] = {
    _errno.ENOENT: XenNotFoundError,
    _errno.EACCES: XenPermissionError,
    _errno.EPERM: XenPermissionError,
    _errno.EEXIST: XenExistsError,
    _errno.ETIMEDOUT: XenTimeoutError,
    _errno.ECONNRESET: XenConnectionError,
    _errno.ECONNREFUSED: XenConnectionError,
    _errno.EPIPE: XenConnectionError,
}


def xen_error(errno: int, operation: str, hint: str = "", **arguments: object) -> XenError:
    """Make the `XenError` subclass that fits `errno`.  Returns it; the caller raises."""
    return _BY_ERRNO.get(errno, XenError)(errno, operation, hint, **arguments)


def _again(
    kind: type[XenError], errno: int, operation: str, hint: str, arguments: dict[str, object]
) -> XenError:
    return kind(errno, operation, hint, **arguments)


def _short(value: object, limit: int = 80) -> str:
    """`repr(value)`, bounded: a peer may have chosen the value."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
