# SPDX-License-Identifier: MIT
"""The suite of vchan between threads over the fakes, and what only they can show."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping

import pytest

from conformance.block_front import PATIENCE
from conformance.store_thread import StoreThread
from conformance.vchan_threads_suite import *  # noqa: F403 - the tests themselves
from conformance.vchan_threads_suite import ThreadArena, ThreadHalf
from xenpy.drivers.vchan import blocking
from xenpy.errors import XenConnectionError, XenError, XenTimeoutError
from xenpy.testing.fake_xen import FakeXen
from xenpy.types import DOM0, DomId

GUEST = DomId(1)


@pytest.fixture
def arena() -> Iterator[ThreadArena]:
    xen = FakeXen()

    def census() -> Mapping[str, int]:
        return {
            **xen.census(),
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
        }

    with StoreThread() as store:
        store.ask(lambda fake: fake.introduce(GUEST))
        yield ThreadArena(
            ThreadHalf(DOM0, store.path, xen.domain(DOM0)),
            ThreadHalf(GUEST, store.path, xen.domain(GUEST)),
            census,
            lambda: store.ask(lambda fake: fake.release_domain(GUEST)),
        )
    assert not any(xen.census().values()), xen.census()
    xen.close()


def test_a_domain_that_is_destroyed_notifies_nobody(arena: ThreadArena) -> None:
    assert arena.destroy is not None
    with arena.pair() as (here, there):
        there.sendall(b"last")
        assert here.recv(9) == b"last"
        arena.destroy()
        began = time.monotonic()
        assert here.recv(9) == b""
        assert time.monotonic() - began < 5.0
        with pytest.raises(XenConnectionError, match="gone"):
            here.sendall(b"x")


def test_no_store_no_thread(arena: ThreadArena) -> None:
    before = arena.census()
    for attempt in (
        lambda: blocking.listen(1, "data/x", store="/nowhere", xen=arena.server.xen),
        lambda: blocking.connect(0, "data/x", store="/nowhere", xen=arena.client.xen),
    ):
        with pytest.raises(XenError):
            attempt()
    with pytest.raises(ValueError, match="1048576 is the most"):
        blocking.listen(1, "data/x", left=1 << 30, store=arena.server.store)
    arena.check_nothing_is_held(before)


def test_no_port_for_the_bell(arena: ThreadArena, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made for the channel is given back, at either end."""
    before = arena.census()
    with arena.listen() as server:
        with monkeypatch.context() as patch:
            patch.setattr("xenpy.duplex.DOMID_SELF", DomId(999))
            with pytest.raises(XenError, match="bind_interdomain"):
                arena.connect()
        with arena.connect() as there, monkeypatch.context() as patch:
            patch.setattr("xenpy.duplex.DOMID_SELF", DomId(999))
            with pytest.raises(XenError, match="bind_interdomain"):
                server.accept(PATIENCE)
            assert there.recv(1) == b""
    arena.check_nothing_is_held(before)


def test_nobody_serves(arena: ThreadArena) -> None:
    before = arena.census()
    with pytest.raises(XenTimeoutError, match="no server has published it"):
        arena.connect(0.1)
    arena.check_nothing_is_held(before)
