# SPDX-License-Identifier: MIT
"""What all handles of Xen have in common: close, fork, leaks.

Layer 2, below `memory`, `gnttab`, `evtchn` and `ctrl`.  xengnttab.h and xenevtchn.h forbid
any use but close after fork, and a descriptor that a child inherits keeps grants mapped and
ports bound after the parent has let go.  Therefore:

- Every handle notices that it was inherited, and raises `StaleHandleError` when used.
- A child made by `os.fork` closes the descriptors it inherited, first thing.
- Shared pages are not inherited at all (MADV_DONTFORK): a view that a child touches all the
  same is a segmentation fault in the child, never a page that stays granted.
- Python's `subprocess` is safe (the devices are opened with O_CLOEXEC and it always execs);
  `multiprocessing` must be told to use "spawn" or "forkserver".  Code that forks and goes on
  without exec calls `refuse_if_open` first.
"""

from __future__ import annotations

import errno
import os
import warnings
import weakref
from types import TracebackType
from typing import ClassVar, Self

from xenpy.errors import StaleHandleError, XenError, xen_error

__all__ = ["Handle", "open_error", "open_handles", "refuse_if_open"]

_open: weakref.WeakSet[Handle] = weakref.WeakSet()


class Handle:
    """Base of everything that must be closed.

    A context manager; `close` twice is harmless; use after close or after fork raises
    `StaleHandleError`; collected unclosed, it warns with `ResourceWarning` and closes itself.
    """

    survives_fork: ClassVar[bool] = False
    """There is nothing of Xen's in it: a child goes on using what it inherited."""

    def __init__(self) -> None:
        self._state = ""
        _open.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The attribute is missing if the constructor failed.
        if getattr(self, "_state", "closed"):
            return
        try:
            # Raises where warnings are errors.
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
        finally:
            try:
                self.close()
            except BufferError:
                # A view outlives its mapping: to leak the pages is better than SIGSEGV.
                _open.discard(self)

    @property
    def closed(self) -> bool:
        """Closed, or inherited by fork."""
        return bool(self._state)

    def close(self) -> None:
        """Give everything back.  Does nothing when closed already, or in a forked child."""
        if not self._state:
            self._release()
            self._mark_closed()

    def _mark_closed(self) -> None:
        self._state = "closed"
        _open.discard(self)

    def _release(self) -> None:
        """Give everything back to Xen; raises if that is impossible now."""
        raise NotImplementedError

    def _abandon(self) -> None:
        """In a forked child: close what was inherited, and touch nothing of the parent's."""

    def _check(self, operation: str) -> None:
        """Raises StaleHandleError when closed or forked."""
        if self._state:
            raise StaleHandleError(errno.EBADF, operation, hint=f"the handle is {self._state}")

    def _after_fork(self) -> None:
        self._abandon()
        self._state = "inherited by fork: open one in this process"
        _open.discard(self)


def open_error(number: int, operation: str, module: str) -> XenError:
    """What it means that a device of Xen's could not be opened.  Returns it; raise it."""
    if number in (errno.EACCES, errno.EPERM):
        return xen_error(number, operation, "are you root?")
    return xen_error(number, operation, f"is this a Xen domain? modprobe {module}")


def open_handles() -> list[Handle]:
    """All handles of this process that are open."""
    return [handle for handle in _open if not handle.closed]


def refuse_if_open(operation: str) -> None:
    """To be called before a fork without exec.

    Raises:
        XenError: EBUSY, if this process holds any handle of Xen.
    """
    count = sum(not handle.survives_fork for handle in open_handles())
    if count:
        raise XenError(
            errno.EBUSY, operation, hint="close Xen's handles before a fork, or exec", open=count
        )


def _in_child() -> None:
    for handle in open_handles():
        if not handle.survives_fork:
            handle._after_fork()  # pyright: ignore[reportPrivateUsage]


os.register_at_fork(after_in_child=_in_child)
