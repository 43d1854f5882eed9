# SPDX-License-Identifier: MIT
"""What a service manager hears, and when nothing is said."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenpy.sd_notify import Manager


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "notify"))
        one.settimeout(5.0)
        yield one


def test_the_manager_hears_how_it_goes(heard: socket.socket) -> None:
    manager = Manager({"NOTIFY_SOCKET": heard.getsockname()})
    manager.ready("serving vbd3")
    manager.reloading()
    manager.stopping()
    assert heard.recv(100) == b"READY=1\nSTATUS=serving vbd3"
    first, second = heard.recv(100).split(b"\n")
    assert first == b"RELOADING=1"
    assert int(second.removeprefix(b"MONOTONIC_USEC=")) > 0
    assert heard.recv(100) == b"STOPPING=1"


def test_a_name_in_the_abstract_namespace() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(f"\0xenpy-test-{os.getpid()}")
        one.settimeout(5.0)
        Manager({"NOTIFY_SOCKET": f"@xenpy-test-{os.getpid()}"}).stopping()
        assert one.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("whose", ["", str(os.getpid())])
def test_the_watchdog_hears_twice_as_often_as_it_asks(heard: socket.socket, whose: str) -> None:
    environment = {"NOTIFY_SOCKET": heard.getsockname(), "WATCHDOG_USEC": "40000"}
    manager = Manager({**environment, "WATCHDOG_PID": whose} if whose else environment)

    async def turn() -> None:
        keeping = asyncio.create_task(manager.keep_alive())
        await asyncio.sleep(0.11)
        keeping.cancel()

    asyncio.run(turn())
    heard.setblocking(False)
    said = []
    while True:
        try:
            said.append(heard.recv(100))
        except BlockingIOError:
            break
    assert set(said) == {b"WATCHDOG=1"}
    assert 2 <= len(said) <= 6


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "nonsense"}, {"WATCHDOG_USEC": "40000", "WATCHDOG_PID": "1"}],
)
def test_nobody_watches(environment: dict[str, str]) -> None:
    asyncio.run(asyncio.wait_for(Manager(environment).keep_alive(), 1.0))


def test_a_manager_that_is_away_costs_nothing(tmp_path: Path) -> None:
    Manager({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("serving")
