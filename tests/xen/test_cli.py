# SPDX-License-Identifier: MIT
"""The command line in a real dom0: what it refuses leaves nothing in XenStore."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

KIND = "vbd3-unserved"
DISK = ["block", "0", "vdev=xvdy", "--kind", KIND]


def xenpy(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xenpy.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def nodes() -> str:
    """Every device of dom0, both halves."""
    command = ["xenstore-ls", "-f", "/local/domain/0"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return "".join(
        line for line in listed.splitlines(True) if "/device/vbd/" in line or KIND in line
    )


@pytest.fixture(autouse=True)
def nothing_left_in_the_store() -> Iterator[None]:
    before = nodes()
    yield
    assert nodes() == before


def test_a_kind_that_nobody_serves_is_refused_and_removed_again() -> None:
    done = xenpy("attach", *DISK, "--timeout", "1", "--json")
    assert done.returncode == 1, done.stderr
    assert f"no backend answered within 1 s: does a daemon serve {KIND}?" in done.stderr
    assert json.loads(done.stdout)["error"] in done.stderr


def test_a_domain_that_is_not_there_gets_no_device() -> None:
    done = xenpy("attach", "block", "32000", "vdev=xvdy")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "xenpy: there is no domain 32000\n"


def test_what_is_not_attached_cannot_be_detached() -> None:
    done = xenpy("detach", *DISK)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"xenpy: there is no device /local/domain/0/backend/{KIND}/0/51888\n"


def test_a_store_that_is_not_there_is_no_xen() -> None:
    done = xenpy("detach", *DISK, "--store", "/nonexistent/socket")
    assert (done.returncode, done.stdout) == (77, "")
    assert "does xenstored run?" in done.stderr
