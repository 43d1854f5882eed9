# SPDX-License-Identifier: MIT
"""What the suite of the handles needs around it, and small tools for its tests."""

from __future__ import annotations

import os
import select
import traceback
from collections.abc import Callable
from typing import NoReturn, Protocol

from conformance.block_front import PATIENCE, BlockEnvironment
from xenpy.evtchn import EventChannels
from xenpy.types import GrantRef, Port

__all__ = ["Doomed", "HandlesEnvironment", "arrived", "forked", "in_child", "reap", "wait_readable"]


class Doomed(Protocol):
    """A process that holds a page and a port until it is killed."""

    @property
    def ref(self) -> GrantRef:
        """The page's grant."""
        ...

    def kill(self) -> None:
        """SIGKILL: the process has no say in what is cleaned up."""


class HandlesEnvironment(BlockEnvironment, Protocol):
    """The frontend's domain shares and allocates ports, the backend's maps and binds."""

    def start_mapper(self, ref: GrantRef, offset: int, remote_port: Port) -> Doomed:
        """A process of the backend's domain that has mapped `ref`; `offset` is to be cleared
        and `remote_port` of the frontend's domain notified when the mapping goes."""
        ...

    def start_sharer(self, offset: int, remote_port: Port) -> Doomed:
        """A process of the frontend's domain that shares a page with the backend's, and has
        set the byte at `offset`; `remote_port` is one of the backend's domain."""
        ...


def wait_readable(channels: EventChannels) -> None:
    """Wait until a port is pending."""
    ready, _, _ = select.select([channels], [], [], PATIENCE)
    assert ready, f"no event came within {PATIENCE:g} s"


def arrived(channels: EventChannels, limit: int = 64) -> list[Port]:
    """The pending ports, as soon as there is one."""
    wait_readable(channels)
    return channels.pending(limit)


def forked(body: Callable[[], object]) -> int:
    """Run `body` in a child made by fork; its exit status is 0 unless `body` raised."""
    pid = os.fork()
    return pid if pid else _run(body)


def _run(body: Callable[[], object]) -> NoReturn:
    status = 1
    try:
        body()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def reap(pid: int) -> None:
    """Wait for a child and hold it to a clean end."""
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "see the child's traceback"


def in_child(body: Callable[[], object]) -> None:
    """Run `body` in a child made by fork, to its end."""
    reap(forked(body))
