# SPDX-License-Identifier: MIT
"""The page on `xenpy block`, typed in, and its program: dom0, our daemon, dom0's own blkfront."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, DaemonProcess
from conformance.dom0_disk import xenpy
from conformance.typed_page import section, type_in
from conformance.xen_env import nothing_left_in_the_hypervisor
from fences import ROOT

pytestmark = pytest.mark.slow

__all__ = ["nothing_left_in_the_hypervisor"]

PAGE = Path("docs/howto/read-a-disk.md")
DEVICE = Path("/sys/bus/xen/devices/vbd-51840")


def until(condition: bool, path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while path.exists() is not condition:
        assert time.monotonic() < deadline, f"{path}: {not condition}"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def blkfront() -> Iterator[None]:
    """dom0 has it from the start."""
    yield
    load_blkfront()


def load_blkfront(*remove: str) -> None:
    subprocess.run(["modprobe", *remove, "xen-blkfront"], check=True)


def test_what_the_page_says_about_dom0() -> None:
    typed = section(PAGE, "Try it in dom0")
    assert len(typed) >= 10
    type_in(typed)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(4 << 20))
    return path


@pytest.fixture
def disk(tmp_path: Path, image: Path) -> Iterator[str]:
    """xvdi on our daemon; nobody has it."""
    load_blkfront("-r")
    device = ["block", "0", "vdev=xvdi"]
    with DaemonProcess(tmp_path):
        done = xenpy("attach", *device, f"target={image}")
        assert done.returncode == 0, done.stderr
        yield "/local/domain/0/device/vbd/51840"
        done = xenpy("detach", *device)
        assert done.returncode == 0, done.stderr
        until(False, DEVICE)


@pytest.mark.usefixtures("disk")
def test_what_the_page_says_about_a_disk_that_the_kernel_has() -> None:
    load_blkfront()
    until(True, Path("/dev/xvdi"))
    until(True, DEVICE / "driver")
    refused = xenpy("block", "info", "xvdi")
    assert refused.returncode == 1
    typed = section(PAGE, "A disk that the kernel has")
    # What it says is what the page says.
    assert typed[0].text in refused.stderr
    type_in(typed)


def test_the_page_s_program(disk: str, image: Path) -> None:
    done = subprocess.run(
        [sys.executable, "docs/howto/read_disk.py", disk],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == (
        hashlib.sha256(image.read_bytes()).hexdigest() + "\n", 0,
    ), done.stderr  # fmt: skip
