# SPDX-License-Identifier: MIT
"""The suite of the handles over the fake Xen, and what needs no Xen at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from conformance.fake_env import FakeEnvironment
from conformance.handles_env import HandlesEnvironment, in_child
from conformance.handles_suite import *  # noqa: F403 - the tests themselves
from xenpy.ctrl import Control
from xenpy.errors import XenError, XenNotFoundError, XenPermissionError
from xenpy.evtchn import EventChannels
from xenpy.gnttab import GNTST_EAGAIN, CopySegment, GrantShare, GrantTable
from xenpy.handles import Handle, open_error
from xenpy.memory import LocalMemory
from xenpy.types import PAGE_SIZE


@pytest.fixture
def env() -> Iterator[HandlesEnvironment]:
    env = FakeEnvironment()
    yield env
    assert set(env.xen.census().values()) == {0}
    env.xen.close()


@pytest.mark.parametrize("times", [1, 5])
def test_a_page_that_is_paged_out_is_copied_once_it_is_back(times: int) -> None:
    env = FakeEnvironment()
    with (
        env.open_share() as share,
        env.back_xen().open_grants() as table,
        LocalMemory(3 * PAGE_SIZE) as local,
    ):
        pages = share.share(env.back_domid, 3)
        with pages.view() as view:
            for number in range(3):
                view[number * PAGE_SIZE] = number + 1
        env.xen.grants.eagain[env.front_domid, pages.refs[1]] = times
        segments = [
            CopySegment((env.front_domid, ref, 0), (local, number * PAGE_SIZE), PAGE_SIZE)
            for number, ref in enumerate(pages.refs)
        ]
        assert table.copy(segments) == [0, 0, 0]
        with local.view() as view:
            assert [view[number * PAGE_SIZE] for number in range(3)] == [1, 2, 3]
    env.xen.close()


def test_a_page_that_stays_paged_out_keeps_its_status_and_the_others_are_copied() -> None:
    env = FakeEnvironment()
    with (
        env.open_share() as share,
        env.back_xen().open_grants() as table,
        LocalMemory(PAGE_SIZE) as local,
    ):
        pages = share.share(env.back_domid, 2)
        env.xen.grants.eagain[env.front_domid, pages.refs[0]] = 1000
        segments = [CopySegment((env.front_domid, ref, 0), (local, 0), 8) for ref in pages.refs]
        assert table.copy(segments) == [GNTST_EAGAIN, 0]
        assert env.xen.grants.eagain[env.front_domid, pages.refs[0]] == 1000 - 9, "1 + 8 tries"
    env.xen.close()


@pytest.mark.parametrize(
    ("opened", "module"),
    [
        pytest.param(GrantTable, "xen-gntdev", id="GrantTable"),
        pytest.param(GrantShare, "xen-gntalloc", id="GrantShare"),
        pytest.param(EventChannels, "xen-evtchn", id="EventChannels"),
    ],
)
def test_without_xen_the_error_says_what_to_load(opened: Callable[[], Handle], module: str) -> None:
    """With the real libraries: this machine has no /dev/xen."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(XenNotFoundError, match=f"modprobe {module}") as caught:
        opened()
    assert caught.value.errno == errno.ENOENT
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_xen_there_is_no_control_domain() -> None:
    with pytest.raises(XenNotFoundError, match="is this dom0"):
        Control()


def test_who_lacks_the_permission_is_not_told_to_load_a_module() -> None:
    error = open_error(errno.EACCES, "gnttab_open", "xen-gntdev")
    assert isinstance(error, XenPermissionError)
    assert "root" in error.hint
    assert "modprobe" not in str(error)


def test_memory_of_our_own_does_not_stand_in_the_way_of_a_fork() -> None:
    code = (
        "from xenpy.handles import open_handles, refuse_if_open\n"
        "from xenpy.memory import LocalMemory\n"
        "with LocalMemory(10) as memory:\n"
        "    refuse_if_open('daemonise')\n"
        "    assert open_handles() == [memory]\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_memory_of_our_own_goes_on_in_a_child() -> None:
    with LocalMemory(10) as memory:

        def child() -> None:
            memory.view()[0] = 1
            assert not memory.closed
            memory.close()
            assert memory.closed

        in_child(child)
        assert bytes(memory.view(0, 1)) == b"\0"


def test_no_more_is_shared_than_the_fake_is_told_to_allow() -> None:
    """As tests/xen/test_handles.py, of the kernel."""
    env = FakeEnvironment()
    env.xen.grants.limit = 5
    with env.open_share() as share:
        share.share(env.back_domid, 4)
        with pytest.raises(XenError, match="count=2") as caught:
            share.share(env.back_domid, 2)
        assert caught.value.errno == errno.ENOSPC
        share.share(env.back_domid, 1)
        assert share.held == 5
    env.xen.close()
