# SPDX-License-Identifier: MIT
"""What a command in dom0 comes to when the connection to it is lost, with a stand-in for ssh."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from xenpy.vm import cli, session
from xenpy.vm.context import Context
from xenpy.vm.errors import VmDiedError, VmError
from xenpy.vm.machine import Vm
from xenpy.vm.session import Session
from xenpy.vm.ssh import Link


@dataclass
class LostLink:
    """An ssh that ends with 255, whatever it is asked."""

    directory: Path

    def command(self, remote: str, *, tty: bool = False) -> list[str]:
        return ["sh", "-c", "exit 255"]


def lost(directory: Path, check: Callable[[], None]) -> Session:
    return Session(cast(Link, LostLink(directory)), check)


def test_a_supervisor_has_time_to_say_why_the_machine_died(tmp_path: Path) -> None:
    began = time.monotonic()

    def check() -> None:
        if time.monotonic() - began > 1.5:
            raise VmDiedError("dom0's kernel panicked")

    with pytest.raises(VmDiedError, match="dom0's kernel panicked"):
        lost(tmp_path, check).run("true")


def test_a_connection_may_be_lost_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "DEATH_TIMEOUT", 0.1)
    with pytest.raises(VmDiedError, match="lost the connection to dom0"):
        lost(tmp_path, lambda: None).run("true")


# What takes too long says what the console said last.


class SlowLink:
    """An ssh that never ends, and never connects."""

    control = "ssh"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def command(self, remote: str, *, tty: bool = False) -> list[str]:
        return ["sleep", "60"]

    def master(self) -> list[str]:
        return ["sleep", "60"]


class QuietVm:
    """A machine that lives."""

    def __init__(self, directory: Path) -> None:
        self.console_log = directory / "console.log"
        self.console_log.write_text("first\nBUG: soft lockup\n")

    def on_death(self, callback: Callable[[], None]) -> None:
        pass

    def forget(self, callback: Callable[[], None]) -> None:
        pass


def slow(directory: Path, *, ours: bool = True) -> Session:
    vm = cast(Vm, QuietVm(directory)) if ours else None
    return Session(cast(Link, SlowLink(directory)), lambda: None, vm)


def test_a_command_that_takes_too_long_shows_the_console(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="timed out after 0 s: true") as caught:
        slow(tmp_path).run("true", timeout=0.1, hint="wait longer")
    assert caught.value.details.splitlines() == ["first", "BUG: soft lockup"]
    assert caught.value.hint == "wait longer"


def test_our_own_command_that_takes_too_long_shows_the_console(tmp_path: Path) -> None:
    with pytest.raises(VmDiedError, match="dom0 did not finish within 0 s: true") as caught:
        slow(tmp_path).output("true", timeout=0.1)
    assert caught.value.details.splitlines()[-1] == "BUG: soft lockup"
    assert "--save-console" in caught.value.hint
    with pytest.raises(VmDiedError, match="dom0 did not finish") as caught:
        slow(tmp_path, ours=False).output("true", timeout=0.1)
    assert (caught.value.details, caught.value.hint) == ("", "`xenvm logs` shows its console")


def test_a_dom0_without_ssh_shows_the_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MASTER_TIMEOUT", 0.1)
    with pytest.raises(VmDiedError, match="dom0 took no ssh connection") as caught:
        slow(tmp_path).__enter__()
    assert caught.value.details.splitlines()[-1] == "BUG: soft lockup"
    assert "--save-console" in caught.value.hint


def test_exec_says_how_to_wait_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def session(_: Context, *, fresh: bool) -> Generator[Session]:
        yield slow(tmp_path)

    monkeypatch.setattr(Context, "session", session)
    arguments = cli.parser().parse_args(["exec", "--timeout", "0.1"])
    arguments.command = ["true"]
    with pytest.raises(VmError, match="timed out") as caught:
        arguments.run(Context(), arguments)
    assert "--timeout SECONDS" in caught.value.hint
