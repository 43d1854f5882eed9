# SPDX-License-Identifier: MIT
"""The command line in a real dom0: what it refuses leaves nothing in XenStore."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenpy.cli.main import EXIT_FAILED, EXIT_NO_XEN, main

KIND = "vbd3-unserved"
DISK = ["block", "0", "vdev=xvdp", "--kind", KIND]


def nodes() -> str:
    """Every device of dom0, both halves."""
    command = ["xenstore-ls", "-f", "/local/domain/0"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return "".join(
        line for line in listed.splitlines(True) if "/device/vbd/" in line or f"{KIND}/0" in line
    )


@pytest.fixture(autouse=True)
def nothing_left_in_the_store() -> Iterator[None]:
    before = nodes()
    yield
    assert nodes() == before


def test_a_kind_that_nobody_serves_is_refused_and_removed_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["attach", *DISK, "--timeout", "1", "--json"]) == EXIT_FAILED
    said = capsys.readouterr()
    assert f"no backend answered within 1 s: does a daemon serve {KIND}?" in said.err
    assert json.loads(said.out)["error"] in said.err


def test_a_domain_that_is_not_there_gets_no_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attach", "block", "32000", "vdev=xvdp"]) == EXIT_FAILED
    assert capsys.readouterr() == ("", "xenpy: there is no domain 32000\n")


def test_what_is_not_attached_cannot_be_detached(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["detach", *DISK]) == EXIT_FAILED
    path = f"/local/domain/0/backend/{KIND}/0/51952"
    assert capsys.readouterr() == ("", f"xenpy: there is no device {path}\n")


def test_a_store_that_is_not_there_is_no_xen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["detach", *DISK, "--store", str(tmp_path / "none")]) == EXIT_NO_XEN
    assert "does xenstored run?" in capsys.readouterr().err
