# SPDX-License-Identifier: MIT
"""Fixtures of the framework's suites: a daemon, a device, and a witness beside it.

After each case nothing may be held, and the witness, a second device of the same daemon,
has gone on without one failed request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.block_front import eventually
from conformance.framework_front import FrameworkEnvironment, Guest, Host

__all__ = ["HOT", "IMAGE_BYTES", "WITNESS", "guest", "host", "image", "start_host", "witness"]

IMAGE_BYTES = 64 * 512
HOT = 51712
WITNESS = 51728


@pytest.fixture
def start_host(env: FrameworkEnvironment) -> Iterator[Callable[[], Host]]:
    """Starts daemons; those that still run in the end are ended."""
    hosts: list[Host] = []

    def start() -> Host:
        hosts.append(Host(env))
        return hosts[-1]

    yield start
    for host in hosts:
        host.close()


@pytest.fixture
def host(start_host: Callable[[], Host]) -> Host:
    return start_host()


@pytest.fixture
def witness(host: Host, tmp_path: Path) -> Iterator[Guest]:
    """A second device: it must not notice anything."""
    image = tmp_path / "witness.img"
    image.write_bytes(bytes(IMAGE_BYTES))
    witness = Guest(host, image, WITNESS)
    witness.connect()
    witness.check(1)
    before = host.env.census()
    yield witness
    # What the case did is over once the service has seen it.
    eventually(lambda: host.env.census() == before)
    witness.check(2)
    assert witness.error() is None
    witness.remove()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(IMAGE_BYTES))
    return image


@pytest.fixture
def guest(host: Host, witness: Guest, image: Path) -> Iterator[Guest]:
    guest = Guest(host, image, HOT)
    yield guest
    guest.remove()
    assert host.get(guest.back) is None
    witness.check(3)
