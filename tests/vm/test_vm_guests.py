# SPDX-License-Identifier: MIT
"""Guests of the machine, and the demonstration with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Xenvm


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_guest_is_made_when_it_is_needed(xenvm: Xenvm, instance: str, kind: str) -> None:
    words = ["exec", "--name", instance, "--guest", f"g{kind}", "--type", kind, "--"]
    done = xenvm.run(*words, "cat; uname -n; exit 7", data=b"in\n")
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith(b"in\n")
    assert b"xenvm-guest: error" not in done.stderr
    facts = xenvm.output(*words, "cat /sys/hypervisor/type /sys/hypervisor/guest_type")
    assert facts.split() == ["xen", kind.upper()]
    listing = xenvm.output("exec", "--name", instance, "--", "xl", "list")
    assert listing.count(f"g{kind} ") == 1


def test_a_guest_s_console_is_kept(xenvm: Xenvm, instance: str) -> None:
    words = ["--name", instance, "--guest", "talks"]
    xenvm.output("exec", *words, "--", "echo spoken-$((6 * 7)) > /dev/console")
    assert "spoken-42" in xenvm.output("console", *words)


def test_no_such_guest_s_console(xenvm: Xenvm, instance: str) -> None:
    done = xenvm.run("console", "--name", instance, "--guest", "nobody")
    assert done.returncode == 125
    assert b"xenvm-guest: error: " in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("release", ["trixie", "bookworm"])
def test_the_demonstration(xenvm: Xenvm, tmp_path: Path, release: str) -> None:
    path = tmp_path / "demo.json"
    text = xenvm.output("demo", "--release", release, "--json", str(path))
    facts = json.loads(path.read_text())
    assert facts["ok"] is True
    assert facts["guest_sha256"] == facts["host_sha256"]
    assert facts["guest_sha256"] in text
