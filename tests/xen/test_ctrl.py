# SPDX-License-Identifier: MIT
"""What the hypervisor tells, against what `xl` prints of it."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from conformance.handles_env import in_child
from xenpy.ctrl import Control, DomainInfo
from xenpy.errors import StaleHandleError, XenNotFoundError
from xenpy.types import DOM0, DomId
from xenpy.vm import guest

PATIENCE = 120.0
SHUTDOWN_CRASH = 3
"""sched.h."""


@pytest.fixture
def control() -> Iterator[Control]:
    with Control() as control:
        yield control


def xl(*words: str) -> str:
    return subprocess.run(["xl", *words], check=True, capture_output=True, text=True).stdout


class Listed(NamedTuple):
    """A line of `xl list -v`."""

    memory_mib: int
    vcpus: int
    state: str
    seconds: float
    uuid: uuid.UUID
    reason: str


def listed() -> dict[int, Listed]:
    """`xl list -v` by domid."""
    found: dict[int, Listed] = {}
    for line in xl("list", "-v").splitlines()[1:]:
        _, domid, memory, vcpus, state, seconds, name, reason, *_ = line.split()
        found[int(domid)] = Listed(
            int(memory), int(vcpus), state, float(seconds), uuid.UUID(name), reason
        )
    return found


def as_xl_shows_it(info: DomainInfo) -> str:
    """The column State of `xl list` (xl_list.c)."""
    flags = [
        (info.running, "r"),
        (info.blocked, "b"),
        (info.paused, "p"),
        (info.shutdown, "s"),
        (info.shutdown_reason == SHUTDOWN_CRASH, "c"),
        (info.dying, "d"),
    ]
    return "".join(letter if flag else "-" for flag, letter in flags)


@contextmanager
def running_guest(name: str, text: str, *, paused: bool = False) -> Iterator[DomId]:
    guest.create(name, text, paused=paused)
    domid = guest.domid(name)
    assert domid is not None
    try:
        yield DomId(domid)
    finally:
        guest.destroy(name)


def matches(control: Control, domid: DomId) -> DomainInfo:
    """Hold every field against `xl list -v`."""
    before = listed()[domid]
    info = control.domain(domid)
    after = listed()[domid]
    assert info.domid == domid
    assert uuid.UUID(bytes=info.uuid) == before.uuid
    assert info.pages * 4 // 1024 == before.memory_mib
    assert info.max_pages >= info.pages
    assert info.vcpus == before.vcpus
    assert before.seconds - 0.1 <= info.cpu_time_ns / 1e9 <= after.seconds + 0.1
    assert as_xl_shows_it(info) in (before.state, after.state)
    return info


def test_dom0_is_what_xl_says_it_is(control: Control) -> None:
    info = matches(control, DOM0)
    assert info.running, "who asks, runs"
    assert (info.hvm, info.paused, info.dying) == (False, False, False)
    assert (info.shutdown, info.shutdown_reason) == (False, 0)


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_paused_guest_is_what_xl_says_it_is(control: Control, kind: str) -> None:
    text = guest.config("ctrl", network=None, kind=kind, memory=128)
    with running_guest("ctrl", text, paused=True) as domid:
        info = matches(control, domid)
        assert (info.paused, info.running, info.shutdown) == (True, False, False)
        assert info.hvm is (kind == "pvh")
        assert [each.domid for each in control.domains()] == sorted(listed())
        assert control.domains(domid) == [info]
        assert control.domains(DomId(domid + 1)) == []
    # xl destroy returns before the last of its memory has been scrubbed.
    deadline = time.monotonic() + PATIENCE
    while any(each.domid == domid for each in control.domains()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(XenNotFoundError):
        control.domain(domid)


@pytest.mark.slow
def test_a_crashed_guest_has_a_reason(control: Control) -> None:
    text = guest.config(
        "ctrl-crash", network=None, memory=256, kernel_arguments="rdinit=/nothing root=/dev/none"
    )
    text = text.replace("on_crash = 'destroy'", "on_crash = 'preserve'")
    with running_guest("ctrl-crash", text) as domid:
        deadline = time.monotonic() + PATIENCE
        while not control.domain(domid).shutdown:
            assert time.monotonic() < deadline, f"not within {PATIENCE} s"
            time.sleep(0.2)
        info = matches(control, domid)
        assert info.shutdown_reason == SHUTDOWN_CRASH == int(listed()[domid].reason)


@pytest.mark.parametrize("domid", [31999, 0x7FEF, 0x7FF0, 0xFFFF, 0x10000])
def test_a_domain_that_is_not_there_is_not_found(control: Control, domid: int) -> None:
    with pytest.raises(XenNotFoundError, match=f"domid={domid}"):
        control.domain(DomId(domid))


def test_the_machine_is_what_xl_says_it_is(control: Control) -> None:
    def info() -> dict[str, str]:
        lines = (line.partition(":") for line in xl("info").splitlines())
        return {name.strip(): value.strip() for name, _, value in lines}

    before, physical, after = info(), control.physinfo(), info()
    shown = {
        "nr_cpus": physical.cpus,
        "nr_nodes": physical.nodes,
        "threads_per_core": physical.threads_per_core,
        "cores_per_socket": physical.cores_per_socket,
        "total_memory": physical.total_pages * 4 // 1024,
    }
    assert {name: str(value) for name, value in shown.items()} == {
        name: before[name] for name in shown
    }
    assert f"{physical.cpu_khz // 1000}.{physical.cpu_khz % 1000:03}" == before["cpu_mhz"]
    free = [int(each["free_memory"]) for each in (before, after)]
    assert min(free) <= physical.free_pages * 4 // 1024 <= max(free)
    assert physical.scrub_pages <= physical.free_pages
    assert control.version() == before["xen_version"]
    assert control.version() == "{xen_major}.{xen_minor}{xen_extra}".format(**before)


def test_the_console_ring_is_what_xl_dmesg_prints(control: Control) -> None:
    xl("debug-keys", "h")
    before, printed, after = control.console_ring(), xl("dmesg"), control.console_ring()
    assert re.search(r"^\(XEN\) .*'h' pressed", before, re.M)
    assert before in printed
    assert printed in after


def test_the_console_ring_can_be_emptied(control: Control) -> None:
    xl("debug-keys", "h")
    assert "'h' pressed" in control.console_ring(clear=True)
    assert "'h' pressed" not in control.console_ring()
    xl("debug-keys", "h")
    assert "'h' pressed" in control.console_ring(), "and fills again"


def uses(control: Control) -> list[Callable[[], object]]:
    return [
        control.domains,
        lambda: control.domain(DOM0),
        control.version,
        control.physinfo,
        control.console_ring,
    ]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_closed_control_is_of_no_use_and_holds_nothing() -> None:
    before = descriptors()
    with Control() as control:
        assert descriptors() > before
        assert repr(control) == "<Control open>"
    control.close()
    assert descriptors() == before
    assert repr(control) == "<Control closed>"
    for use in uses(control):
        with pytest.raises(StaleHandleError, match="closed"):
            use()


def test_a_child_of_fork_cannot_use_it(control: Control) -> None:
    def child() -> None:
        for use in uses(control):
            with pytest.raises(StaleHandleError, match="inherited by fork"):
                use()
        with Control() as own:
            assert own.domain(DOM0).domid == DOM0

    in_child(child)
    assert control.domain(DOM0).domid == DOM0


def test_a_forgotten_control_warns_and_is_closed() -> None:
    before = descriptors()
    with pytest.warns(ResourceWarning, match="<Control open> was never closed"):
        Control()
    gc.collect()
    assert descriptors() == before
