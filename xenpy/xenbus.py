# SPDX-License-Identifier: MIT
"""The XenBus handshake as a table, sans-IO, for both sides.

Implements xen/include/public/io/xenbus.h and the state diagrams of io/blkif.h as
Linux's drivers read them (blkback `frontend_changed`, blkfront `blkback_changed`).
Nothing here reads or writes: `backend_step` and `frontend_step` say what to do next,
`xenpy.backend` does it.  The diagram in the documentation is drawn from these tables.

A device has a *phase*, the state that its driver is really in, and a *node*, what the
`state` key says.  They differ when a toolstack has written the node: libxl asks for a
close by `online` = 0 and `state` = 5, and a device made anew under the same path shows
`state` = 1 again.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from xenpy.types import XenbusState as S

__all__ = [
    "BACKEND_TABLE",
    "FRONTEND_TABLE",
    "BackendStep",
    "FrontendStep",
    "backend_step",
    "frontend_step",
    "parse_state",
]


class BackendStep(Enum):
    """What a backend does next."""

    WAIT = "nothing to do until something changes"
    PREPARE = "open what is served, publish features, go to InitWait"
    CONNECT = "map the rings, start serving, go to Connected"
    FOLLOW_CLOSING = "go to Closing, serve on: the frontend may still have requests in flight"
    DISCONNECT = "stop, unmap, go to Closed"
    RESTART = "stop, unmap, then prepare again: the frontend started over without closing"
    REPLACE = "stop, unmap, forget: the toolstack made the device anew"
    REMOVE = "stop, unmap, forget: the device is gone, or closed for good"


class FrontendStep(Enum):
    """What a frontend does next."""

    WAIT = "nothing to do until something changes"
    PUBLISH = "grant the rings, write ring-ref and event-channel, go to Initialised"
    CONNECT = "read what the backend offers, go to Connected"
    CLOSE = "finish or fail what is in flight, end the grants, go to Closed"
    RESTART = "end the grants, go to Initialising: the backend started over"
    REMOVE = "end the grants, forget: the device is gone"


def _backend_table() -> dict[tuple[S, S], BackendStep]:
    step = BackendStep
    every = tuple(S)
    table = {(ours, theirs): step.WAIT for ours in _BACKEND_PHASES for theirs in every}

    # A new device is prepared whatever the frontend shows: a guest whose driver is not
    # loaded yet has 1, one whose driver was unloaded has 6, and either may come later.
    table |= {(S.INITIALISING, theirs): step.PREPARE for theirs in every}

    # Linux's blkfront goes from 1 straight to 3; some frontends skip 3 and show 4.
    table[S.INIT_WAIT, S.INITIALISED] = step.CONNECT
    table[S.INIT_WAIT, S.CONNECTED] = step.CONNECT
    table[S.INIT_WAIT, S.CLOSING] = step.FOLLOW_CLOSING

    # A frontend that starts over without closing (kexec, a boot loader that hands on).
    table[S.CONNECTED, S.INITIALISING] = step.RESTART
    table[S.CONNECTED, S.INIT_WAIT] = step.RESTART
    table[S.CONNECTED, S.CLOSING] = step.FOLLOW_CLOSING

    table[S.CLOSING, S.INITIALISING] = step.RESTART
    table[S.CLOSING, S.INIT_WAIT] = step.RESTART

    for ours in (S.CONNECTED, S.CLOSING):
        table[ours, S.CLOSED] = step.DISCONNECT
        table[ours, S.UNKNOWN] = step.DISCONNECT

    # Reconnect.  A frontend may have gone from 6 to 1 to 3 before we looked once.
    table[S.CLOSED, S.INITIALISING] = step.PREPARE
    table[S.CLOSED, S.INITIALISED] = step.PREPARE
    return table


def _frontend_table() -> dict[tuple[S, S], FrontendStep]:
    step = FrontendStep
    table = {(ours, theirs): step.WAIT for ours in _FRONTEND_PHASES for theirs in tuple(S)}

    table[S.INITIALISING, S.INIT_WAIT] = step.PUBLISH
    # A backend that skips InitWait, or whose Initialised stands for it (io/xenbus.h).
    table[S.INITIALISING, S.INITIALISED] = step.PUBLISH

    table[S.INITIALISED, S.CONNECTED] = step.CONNECT

    for ours in (S.INITIALISED, S.CONNECTED):
        table[ours, S.CLOSING] = step.CLOSE
        table[ours, S.CLOSED] = step.CLOSE
        table[ours, S.UNKNOWN] = step.REMOVE
    table[S.INITIALISING, S.CLOSING] = step.CLOSE

    # The backend went back to InitWait under us: it has forgotten our rings.
    table[S.CONNECTED, S.INIT_WAIT] = step.RESTART

    # After a close the backend is ready for a new start once it waits again.
    table[S.CLOSED, S.INIT_WAIT] = step.RESTART
    return table


_BACKEND_PHASES: Final = (S.INITIALISING, S.INIT_WAIT, S.CONNECTED, S.CLOSING, S.CLOSED)
_FRONTEND_PHASES: Final = (S.INITIALISING, S.INITIALISED, S.CONNECTED, S.CLOSED)

BACKEND_TABLE: Final = _backend_table()
"""(our phase, the frontend's state) -> step, for a device that is online."""
FRONTEND_TABLE: Final = _frontend_table()
"""(our phase, the backend's state) -> step."""


def backend_step(phase: S, node: S, theirs: S, *, online: bool) -> BackendStep:
    """The next step of a backend.

    Args:
        phase: the state that the device is really in; never UNKNOWN.
        node: what the device's own `state` key says now; UNKNOWN if it is gone.
        theirs: the frontend's `state`; UNKNOWN if the node or the domain is gone.
        online: the toolstack still wants the device.
    """
    if node is S.UNKNOWN:
        return BackendStep.REMOVE
    if node is S.INITIALISING and phase is not S.INITIALISING:
        return BackendStep.REPLACE
    if phase is S.CLOSED and node is S.CLOSING:
        # A toolstack asked for a close while we closed: it waits for the answer.
        return BackendStep.DISCONNECT
    if online:
        step = BACKEND_TABLE[phase, theirs]
        if step is BackendStep.WAIT and node is S.CLOSING and phase in (S.INIT_WAIT, S.CONNECTED):
            # `state` = 5 with `online` = 1: a toolstack that shuts down, or reconfigures.
            return BackendStep.FOLLOW_CLOSING
        return step
    return _offline_step(phase, theirs)


def _offline_step(phase: S, theirs: S) -> BackendStep:
    """The device is to go: serve until the frontend has let go, then close for good."""
    if phase is S.CLOSED:
        return BackendStep.REMOVE
    if phase is S.CONNECTED and theirs in (S.INITIALISED, S.CONNECTED, S.CLOSING):
        return BackendStep.FOLLOW_CLOSING
    if phase is S.CLOSING and theirs in (S.CONNECTED, S.CLOSING):
        return BackendStep.WAIT
    return BackendStep.DISCONNECT


def frontend_step(phase: S, theirs: S) -> FrontendStep:
    """The next step of a frontend whose backend shows `theirs`."""
    return FRONTEND_TABLE[phase, theirs]


def parse_state(text: str | None) -> S:
    """The value of a `state` key as the other side wrote it; nonsense is UNKNOWN.

    Only what a driver can mean is taken: a decimal digit.  `" 4"`, `"+4"`, `"0x4"` and
    `"٤"` all pass `int()` or C's `strtol` somewhere and are refused here.
    """
    if text is not None and len(text) == 1 and "0" <= text <= "8":
        return S(int(text))
    return S.UNKNOWN
