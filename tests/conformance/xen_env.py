# SPDX-License-Identifier: MIT
"""Environments of the suites over a real Xen: both halves in dom0; and what Xen counts.

A module that runs a suite here imports `nothing_left_in_the_hypervisor` as well.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from conformance.block_front import PATIENCE
from xenpy.backend import NativeXen, XenAccess
from xenpy.evtchn import EventChannels
from xenpy.gnttab import GrantShare
from xenpy.types import DOM0, DomId, GrantRef, Port

__all__ = ["Loopback", "children", "hypervisor_census", "nothing_left_in_the_hypervisor"]

ACTIVE_GRANT = re.compile(r"^\(XEN\)\s+\[\s*(?:0x)?[0-9a-f]+\]\s", re.M)
OPEN_PORT = re.compile(r"^\(XEN\)\s+\d+ \[", re.M)


class Loopback:
    """Domain 0 as its own frontend and backend."""

    front_domid = DOM0
    back_domid = DOM0
    stranger_domid = DomId(32000)

    def back_xen(self) -> XenAccess:
        return NativeXen()

    def open_share(self) -> GrantShare:
        return GrantShare()

    def open_channels(self) -> EventChannels:
        return EventChannels()

    def start_mapper(self, ref: GrantRef, offset: int, remote_port: Port) -> DoomedProcess:
        return DoomedProcess("map", offset, remote_port, ref)

    def start_sharer(self, offset: int, remote_port: Port) -> DoomedProcess:
        return DoomedProcess("share", offset, remote_port)

    def census(self) -> Mapping[str, int]:
        maps = Path("/proc/self/maps").read_text()
        return {
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "gntdev maps": maps.count("/dev/xen/gntdev"),
            "gntalloc maps": maps.count("/dev/xen/gntalloc"),
            "children": len(children()),
        }


def children() -> list[int]:
    """The processes that this one started, by id."""
    while True:
        # A thread that ends meanwhile leaves its children to another one, read or not.
        with suppress(FileNotFoundError, ProcessLookupError):
            listed = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
            return [int(pid) for text in listed for pid in text.split()]


class DoomedProcess:
    """`conformance.doomed` as a process."""

    def __init__(self, verb: str, *words: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "conformance.doomed", verb, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            self.kill()
            raise RuntimeError(f"{verb} {words} failed: see its traceback")
        self.ref = GrantRef(int(said))

    def kill(self) -> None:
        self._process.kill()
        with self._process:
            self._process.wait(PATIENCE)


def hypervisor_census() -> tuple[int, int]:
    """Grants that are mapped and ports that are open, as Xen itself counts them."""
    subprocess.run(["xl", "dmesg", "-c"], check=True, stdout=subprocess.DEVNULL)
    for key in "ge":
        subprocess.run(["xl", "debug-keys", key], check=True)
    dump = subprocess.run(["xl", "dmesg"], check=True, capture_output=True, text=True).stdout
    assert "gnttab_usage_print_all ] done" in dump
    return len(ACTIVE_GRANT.findall(dump)), len(OPEN_PORT.findall(dump))


@pytest.fixture(scope="module", autouse=True)
def nothing_left_in_the_hypervisor() -> Iterator[None]:
    before = hypervisor_census()
    yield
    # gntalloc gives pages back when the kernel gets round to it.
    deadline = time.monotonic() + PATIENCE
    while (after := hypervisor_census()) != before and time.monotonic() < deadline:
        time.sleep(0.5)
    assert after == before, "(mapped grants, open ports)"
