# SPDX-License-Identifier: MIT
"""What a command in dom0 comes to when the connection to it is lost, with a stand-in for ssh."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from xenpy.vm import session
from xenpy.vm.errors import VmDiedError
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
