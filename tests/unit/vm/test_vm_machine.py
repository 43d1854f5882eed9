# SPDX-License-Identifier: MIT
"""What is done when a machine dies, without a machine."""

from __future__ import annotations

import subprocess
from collections import namedtuple
from collections.abc import Generator
from pathlib import Path
from typing import cast

import pytest

from xenpy.vm.errors import VmDiedError
from xenpy.vm.image import Image
from xenpy.vm.machine import Vm
from xenpy.vm.qemu import Machine

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def vm(tmp_path: Path) -> Generator[Vm]:
    """A machine whose QEMU is a `sleep`."""
    vm = Vm(cast(Image, None), Machine(), tmp_path)
    with vm:
        vm._qemu = subprocess.Popen(["sleep", "60"])
        yield vm


def test_a_full_disk_keeps_no_dead_machine_alive(vm: Vm) -> None:
    called: list[int | None] = []
    vm.on_death(lambda: called.append(vm._qemu.wait(5) if vm._qemu is not None else None))
    (vm.directory / "death").mkdir()  # nobody can write there, as on a full disk
    vm._die(VmDiedError("it died"))
    assert called == [-9]
    with pytest.raises(VmDiedError, match="it died"):
        vm.check()


def test_why_it_died_is_written(vm: Vm) -> None:
    vm._die(VmDiedError("it died"))
    assert (vm.directory / "death").read_text() == "xenvm: error: it died\n"


@pytest.mark.parametrize(
    ("free", "why", "hint"),
    [
        (1 << 30, "the watchdog ended it", "a deadlock in dom0"),
        (15 << 20, "the host's disk is full", "15 MiB are free"),
    ],
)
def test_why_dom0_is_silent(
    vm: Vm, monkeypatch: pytest.MonkeyPatch, free: int, why: str, hint: str
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(1 << 40, 1 << 40, free))
    error = vm._silent(120.0)
    assert str(error).startswith("dom0 has not answered for 120 s")
    assert why in str(error)
    assert hint in error.hint
