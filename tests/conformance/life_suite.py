# SPDX-License-Identifier: MIT
"""Daemons that come and go, and stores that hang: one suite for the fakes and a real Xen.

A module that runs it imports every name and defines a fixture `env`, a
`FrameworkEnvironment`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from conformance.block_front import PATIENCE, eventually
from conformance.framework_front import (
    HOT,
    FrameworkEnvironment,
    Guest,
    Host,
    a_witness,
    make_image,
)
from xenpy import lifecycle
from xenpy.device_nodes import PARKED
from xenpy.drivers.block.stores.file import FileStore


@pytest.fixture
def start_host(env: FrameworkEnvironment) -> Iterator[Callable[[], Host]]:
    """Starts daemons; those that still run in the end are ended, and nothing is held then."""
    before = env.census()
    hosts: list[Host] = []

    def start() -> Host:
        hosts.append(Host(env))
        return hosts[-1]

    yield start
    for host in hosts:
        host.close()
    eventually(lambda: env.census() == before)


@pytest.fixture
def host(start_host: Callable[[], Host]) -> Host:
    return start_host()


@pytest.fixture
def witness(host: Host, tmp_path: Path) -> Iterator[Guest]:
    with a_witness(host, tmp_path) as witness:
        yield witness


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.img")


@pytest.fixture
def guest(witness: Guest, image: Path) -> Iterator[Guest]:
    guest = Guest(witness.host, image, HOT)
    yield guest
    guest.remove()


# ------------------------------------------------------------------ start


def left_behind(guest: Guest, ours: int, theirs: int | None, *, parked: bool = False) -> None:
    """The nodes as some daemon, of whatever kind, might leave them; nobody serves them."""
    guest.host.write(f"{guest.back}/state", ours)
    if parked:
        guest.host.write(f"{guest.back}/{PARKED}", 1)
    if theirs is None:
        guest.host.rm(guest.front_path)
    else:
        guest.write("state", theirs)


@pytest.fixture
def orphan(start_host: Callable[[], Host], image: Path) -> Guest:
    """A device whose daemon has gone."""
    host = start_host()
    host.close_service()
    return Guest(host, image, HOT)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(1, 1), (1, 5), (1, 6), (4, 1), (4, 6), (5, 1), (5, 6), (6, 1), (6, 5)]
)
def test_a_device_without_a_working_frontend_is_started_anew(
    start_host: Callable[[], Host], orphan: Guest, ours: int, theirs: int
) -> None:
    left_behind(orphan, ours, theirs)
    orphan.host = start_host()
    orphan.wait("2", "5", "6")
    orphan.come_back()
    orphan.check(1)
    assert orphan.error() is None
    orphan.remove()


@pytest.mark.parametrize("theirs", [3, 4, 5])
@pytest.mark.parametrize("ours", [4, 5])
def test_a_device_whose_daemon_died_closes_with_an_error(
    start_host: Callable[[], Host], orphan: Guest, ours: int, theirs: int
) -> None:
    """What is outstanding in the ring cannot be known, so it is not served on."""
    left_behind(orphan, ours, theirs)
    orphan.host = start_host()
    orphan.wait("5")
    eventually(lambda: orphan.error() is not None)
    assert "without parking" in (orphan.error() or "")
    orphan.write("state", "6")
    orphan.wait("6")
    orphan.write("state", "1")
    orphan.connect()
    orphan.check(1)
    orphan.remove()


def test_a_parked_device_whose_ring_cannot_be_mapped_closes(
    start_host: Callable[[], Host], orphan: Guest
) -> None:
    orphan.write("ring-ref", 3)
    orphan.write("event-channel", 3)
    left_behind(orphan, 4, 4, parked=True)
    orphan.host = start_host()
    orphan.wait("5")
    eventually(lambda: orphan.error() is not None)
    orphan.write("state", "6")
    orphan.wait("6")
    orphan.remove()


def test_a_device_whose_frontend_is_gone_closes_and_goes(
    start_host: Callable[[], Host], orphan: Guest
) -> None:
    left_behind(orphan, 4, None)
    orphan.host = start_host()
    orphan.wait("6")
    orphan.remove()


# ------------------------------------------------------------------ stop


def test_parking_hands_over_without_a_lost_request(
    start_host: Callable[[], Host], image: Path
) -> None:
    """A daemon that ends in good order; the next one goes on where it stopped."""
    host = start_host()
    guest = Guest(host, image, HOT)
    ring = guest.connect()
    guest.check(1)
    assert host.run(host.service.park(PATIENCE)) == []
    eventually(lambda: not host.service.devices)
    assert host.get(f"{guest.back}/{PARKED}") == "1"
    ident, slot = ring.request(0, 0, ring.whole_pages(1))
    ring.send([slot])
    # Something happens below the directory: the daemon looks, and takes nothing up.
    host.write(f"{guest.back}/junk", "x")
    guest.check_unserved()
    host.close()
    guest.host = start_host()
    (answer,) = ring.receive(1)
    assert (answer.id, answer.status) == (ident, 0)
    assert guest.host.get(f"{guest.back}/{PARKED}") is None
    guest.check(2)
    guest.remove()


def test_a_device_that_is_not_connected_is_parked_as_it_is(
    start_host: Callable[[], Host], image: Path
) -> None:
    host = start_host()
    guest = Guest(host, image, HOT)
    guest.wait("2")
    assert host.run(host.service.park(PATIENCE)) == []
    assert host.get(f"{guest.back}/{PARKED}") is None
    host.close()
    guest.host = start_host()
    guest.connect()
    guest.check(1)
    guest.remove()


# ------------------------------------------------------------------ a store that hangs


@contextmanager
def hanging(image: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Reads of `image` hang meanwhile; the event tells that one does."""
    stuck, mended = threading.Event(), threading.Event()
    preadv = os.preadv
    inode = image.stat().st_ino

    def read(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if os.fstat(fd).st_ino == inode:
            stuck.set()
            mended.wait(4 * PATIENCE)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", read)
    try:
        yield stuck
    finally:
        mended.set()


@pytest.fixture
def short_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: the disk is served in Python, where a test can let a read hang."""
    monkeypatch.setattr(lifecycle, "DISCONNECT_BOUND", 0.5)
    monkeypatch.setattr(FileStore, "native", None)


def test_a_store_that_hangs_drains_and_blocks_nobody(
    guest: Guest, witness: Guest, monkeypatch: pytest.MonkeyPatch, short_bound: None
) -> None:
    ring = guest.connect()
    service = guest.host.service
    with hanging(guest.image, monkeypatch) as stuck:
        ring.send([ring.request(0, 0, ring.whole_pages(1))[1]])
        assert stuck.wait(PATIENCE)
        witness.check(4)
        guest.write("state", "5")
        guest.wait("5")
        guest.write("state", "6")
        eventually(lambda: [life.name for life in service.draining] == [name_of(guest)])
        # Closed would promise that nothing of the guest is held.
        assert guest.state() == "5"
        witness.check(5)
    guest.wait("6")
    assert not service.draining


def test_a_device_made_anew_is_served_while_the_old_one_drains(
    guest: Guest, witness: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_bound: None
) -> None:
    """The toolstack gave up on it, removed the nodes and made the device again."""
    ring = guest.connect()
    service = guest.host.service
    other = make_image(tmp_path / "other.img")
    with hanging(guest.image, monkeypatch) as stuck:
        ring.send([ring.request(0, 0, ring.whole_pages(1))[1]])
        assert stuck.wait(PATIENCE)
        guest.host.rm(guest.back)
        eventually(lambda: len(service.draining) == 1)
        guest.ring = None
        guest.image = other
        guest.make()
        guest.connect()
        guest.check(1)
        witness.check(4)
        assert len(service.draining) == 1
    eventually(lambda: not service.draining)
    guest.check(2)
    ring.close()


def test_a_store_that_hangs_is_not_parked_and_named(
    start_host: Callable[[], Host], image: Path, monkeypatch: pytest.MonkeyPatch, short_bound: None
) -> None:
    host = start_host()
    guest = Guest(host, image, HOT)
    ring = guest.connect()
    with hanging(guest.image, monkeypatch) as stuck:
        ring.send([ring.request(0, 0, ring.whole_pages(1))[1]])
        assert stuck.wait(PATIENCE)
        assert host.run(host.service.park(1.0)) == [name_of(guest)]
        assert host.get(f"{guest.back}/{PARKED}") is None
    ring.receive(1)
    eventually(lambda: not host.service.devices)
    host.close()
    guest.host = start_host()
    guest.check(1)
    guest.remove()


def name_of(guest: Guest) -> str:
    return guest.host.service.devices[guest.back].name
