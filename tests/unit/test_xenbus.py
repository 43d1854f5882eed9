# SPDX-License-Identifier: MIT
"""The handshake tables: total, and free of dead ends when both sides follow them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.types import XenbusState as S
from xenpy.xenbus import (
    BACKEND_TABLE,
    BackendStep,
    FrontendStep,
    backend_step,
    frontend_step,
    parse_state,
)

PHASES = (S.INITIALISING, S.INIT_WAIT, S.CONNECTED, S.CLOSING, S.CLOSED)

AFTER_BACKEND = {
    BackendStep.PREPARE: S.INIT_WAIT,
    BackendStep.CONNECT: S.CONNECTED,
    BackendStep.FOLLOW_CLOSING: S.CLOSING,
    BackendStep.DISCONNECT: S.CLOSED,
    BackendStep.RESTART: S.INIT_WAIT,
}
AFTER_FRONTEND = {
    FrontendStep.PUBLISH: S.INITIALISED,
    FrontendStep.CONNECT: S.CONNECTED,
    FrontendStep.CLOSE: S.CLOSED,
    FrontendStep.RESTART: S.INITIALISING,
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("node", list(S))
@pytest.mark.parametrize("theirs", list(S))
@pytest.mark.parametrize("online", [True, False])
def test_every_input_has_a_step(phase: S, node: S, theirs: S, online: bool) -> None:
    assert isinstance(backend_step(phase, node, theirs, online=online), BackendStep)


def settle(back: S, front: S, *, online: bool = True, node: S | None = None) -> list[tuple[S, S]]:
    """Let both sides follow their tables in turn until nothing moves; the states passed."""
    passed = [(back, front)]
    node = back if node is None else node
    for _ in range(40):
        step = backend_step(back, node, front, online=online)
        if step in (BackendStep.REMOVE, BackendStep.REPLACE):
            return passed
        if step is not BackendStep.WAIT:
            back = node = AFTER_BACKEND[step]
        answer = frontend_step(front, node)
        if answer is FrontendStep.REMOVE:
            return passed
        if answer is not FrontendStep.WAIT:
            front = AFTER_FRONTEND[answer]
        if step is BackendStep.WAIT and answer is FrontendStep.WAIT:
            return passed
        passed.append((back, front))
    raise AssertionError(f"never settles: {passed}")


def test_both_sides_meet_in_connected() -> None:
    assert settle(S.INITIALISING, S.INITIALISING)[-1] == (S.CONNECTED, S.CONNECTED)


@pytest.mark.parametrize("back", PHASES)
def test_a_frontend_that_starts_over_is_served_again(back: S) -> None:
    assert settle(back, S.INITIALISING)[-1] == (S.CONNECTED, S.CONNECTED)


@pytest.mark.parametrize("back", [S.INITIALISING, S.INIT_WAIT, S.CLOSED])
def test_a_frontend_that_already_published_its_rings_is_connected(back: S) -> None:
    assert settle(back, S.INITIALISED)[-1] == (S.CONNECTED, S.CONNECTED)


@pytest.mark.parametrize("back", PHASES[2:])
def test_an_unloaded_frontend_leaves_an_online_device_closed_and_waiting(back: S) -> None:
    assert settle(back, S.CLOSED)[-1] == (S.CLOSED, S.CLOSED)


@pytest.mark.parametrize("front", [S.INITIALISING, S.INITIALISED, S.CONNECTED, S.CLOSED])
def test_a_detach_always_ends(front: S) -> None:
    """libxl: online = 0, state = 5; within its 10 s the backend must reach Closed."""
    passed = settle(S.CONNECTED, front, online=False, node=S.CLOSING)
    assert passed[-1][0] is S.CLOSED


def test_requests_in_flight_are_served_while_the_frontend_closes() -> None:
    step = backend_step(S.CONNECTED, S.CONNECTED, S.CLOSING, online=True)
    assert step is BackendStep.FOLLOW_CLOSING
    assert backend_step(S.CLOSING, S.CLOSING, S.CLOSING, online=True) is BackendStep.WAIT
    assert backend_step(S.CLOSING, S.CLOSING, S.CLOSED, online=True) is BackendStep.DISCONNECT


def test_a_destroyed_domain_disconnects() -> None:
    for phase in (S.CONNECTED, S.CLOSING):
        for online in (True, False):
            step = backend_step(phase, S.CLOSING, S.UNKNOWN, online=online)
            assert step is BackendStep.DISCONNECT


def test_nodes_made_anew_replace_the_device() -> None:
    for phase in PHASES[1:]:
        for theirs in S:
            assert backend_step(phase, S.INITIALISING, theirs, online=True) is BackendStep.REPLACE


def test_a_frontend_alone_never_removes_a_device() -> None:
    """Only the toolstack, by its own keys, ends a device: a guest may flap for ever."""
    for (phase, theirs), step in BACKEND_TABLE.items():
        assert step not in (BackendStep.REMOVE, BackendStep.REPLACE), (phase, theirs)


@given(st.lists(st.sampled_from(list(S)), max_size=40))
def test_flapping_never_connects_twice_without_a_disconnect(shown: list[S]) -> None:
    phase = S.INITIALISING
    connected = False
    for theirs in shown:
        step = backend_step(phase, phase, theirs, online=True)
        if step is BackendStep.CONNECT:
            assert not connected
            connected = True
        if step in (BackendStep.DISCONNECT, BackendStep.RESTART):
            connected = False
        phase = AFTER_BACKEND.get(step, phase)
        assert connected == (phase is S.CONNECTED) or phase is S.CLOSING


@pytest.mark.parametrize("text", ["", " 4", "4 ", "+4", "0x4", "44", "-1", "9", "٤", "4\0", None])
def test_nonsense_is_unknown(text: str | None) -> None:
    assert parse_state(text) is S.UNKNOWN


@pytest.mark.parametrize("state", list(S))
def test_states_parse(state: S) -> None:
    assert parse_state(str(int(state))) is state
