# SPDX-License-Identifier: MIT
"""A driver domain: a stock guest with xenpy in it serves another's disk and console, under stock
xl, and its death costs nobody else anything."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conformance.daemon_process import PATIENCE, DaemonProcess
from conformance.guests import FILE_SYSTEM, domains, inside, make_image
from fences import ROOT
from xenpy.vm import disk

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

DRIVER = "drv"
IMAGES = "/tmp/images"
"""In the driver domain: memory."""


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def dom0_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """Serves the driver domain's own root file system, and the witness's disk."""
    with DaemonProcess(tmp_path_factory.mktemp("dom0"), "force=1") as daemon:
        yield daemon


@pytest.fixture
def driver(dom0_daemon: DaemonProcess) -> Iterator[str]:
    """The driver domain, serving; its domid."""
    script = f"{ROOT}/docs/tutorial/guest_with_python.sh"
    try:
        disk.run("sh", script, DRIVER, "--line", "driver_domain=1")
        inside(DRIVER, f"mkdir -p {IMAGES}; truncate -s 32M {IMAGES}/one {IMAGES}/two")
        for name, words in (
            ("block", "serve block"), ("console", f"serve console --kind console log-dir={IMAGES}"),
        ):  # fmt: skip
            inside(DRIVER, f"xenpy {words} -v > /tmp/{name}.log 2>&1 < /dev/null &")
            until(lambda name=name: "serving" in log(name), name)
        yield disk.domid(DRIVER)
    finally:
        subprocess.run(["xl", "destroy", DRIVER], check=False, stderr=subprocess.DEVNULL)


def log(name: str) -> str:
    return inside(DRIVER, f"cat /tmp/{name}.log")


def line(name: str, vdev: str = "xvda") -> str:
    """The disk line of an xl.cfg: `target` is a file of the driver domain's."""
    target = f"target={IMAGES}/{name}"
    return f"vdev={vdev},format=raw,access=w,backend={DRIVER},backendtype=tap,{target}"


@contextmanager
def client(*options: str) -> Iterator[str]:
    """A guest whose disk the driver domain serves; not a word of libxl's about it."""
    name = "client"
    try:
        xl("xenvm-guest", "create", name, "--disk", line("one"), *options)
        yield name
    finally:
        subprocess.run(["xl", "destroy", name], check=False, stderr=subprocess.DEVNULL)


def xl(*command: str) -> None:
    """It succeeds, and libxl reports no error."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "libxl: error" not in said


def device_of(domid: str, driver: str, kind: str = "vbd3") -> str:
    return f"/local/domain/{driver}/backend/{kind}/{domid}"


def exists(path: str) -> bool:
    return subprocess.run(["xenstore-exists", path], check=False).returncode == 0


def test_a_disk_and_a_console_of_another_guest(driver: str) -> None:
    """By `xl create`, `block-attach`, `block-detach` and `destroy`, each without a complaint."""
    channel = f'channel=["backend={DRIVER},connection=pty,name=org.xenpy.test"]'
    with client("--line", channel) as name:
        domid = disk.domid(name)
        assert exists(device_of(domid, driver))
        digest = inside(name, FILE_SYSTEM).split()[0]
        # The driver domain sees what the guest wrote: through the file system of another kernel.
        found = inside(
            DRIVER,
            f"modprobe loop 2>/dev/null || true; mkdir -p /m; mount -o ro,loop {IMAGES}/one /m; "
            "sha256sum < /m/file; umount /m",
        )
        assert found.split()[0] == digest

        inside(name, "until echo hello > /dev/hvc1; do sleep 0.2; done 2>/dev/null")
        until(lambda: "hello" in inside(DRIVER, f"cat {IMAGES}/*.log || true"), "the log")

        assert not opened_by("block") - {"/dev/xen/evtchn", "/dev/xen/gntdev", "/dev/xen/xenbus"}
        xl("xl", "destroy", name)
        assert name not in domains()
    until(lambda: not exists(device_of(domid, driver)), "the backend's directory")
    # Without a channel: for a guest that has one, libxl attaches nothing while no device model runs
    # in domain 0, as if it were needed (libxl__dm_check_start, seen with 4.20).
    with client() as name:
        domid = disk.domid(name)
        for _ in range(2):
            xl("xl", "block-attach", name, line("two", "xvdb"))
            inside(name, "dd if=/dev/zero of=/dev/xvdb bs=64k count=16 oflag=direct 2>&1")
            xl("xl", "block-detach", name, "xvdb")
            assert not exists(f"{device_of(domid, driver)}/51728")
        xl("xl", "destroy", name)
    assert "Traceback" not in log("block") + log("console")


def opened_by(driver: str) -> set[str]:
    """The devices of Xen's that a daemon in the driver domain has open, its workers included."""
    said = inside(
        DRIVER,
        f"for pid in $(pgrep -f 'serve {driver}'; pgrep -f xenpy-block-worker); do "
        "ls -l /proc/$pid/fd; done | sed -n 's/.*-> //p' | sort -u",
    )
    return {word for word in said.split() if word.startswith("/dev/xen/")}


def test_its_death_costs_nobody_else_anything(
    driver: str, dom0_daemon: DaemonProcess, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "witness.img", 16)
    with client() as name:
        disk.create("witness", image)
        try:
            writing = subprocess.Popen(
                ["xenvm-guest", "exec", "witness", "--",
                 "set -e; for i in $(seq 40); do dd if=/dev/urandom of=/tmp/x bs=64k count=8; "
                 "dd if=/tmp/x of=/dev/xvda bs=64k seek=8 oflag=direct; "
                 "dd if=/dev/xvda bs=64k skip=8 count=8 iflag=direct | cmp - /tmp/x; done"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            assert inside(name, "dd if=/dev/xvda of=/dev/null bs=64k count=8 iflag=direct 2>&1")
            xl("xl", "destroy", DRIVER)
            until(lambda: DRIVER not in domains(), "it is gone")
            # The other guests and dom0 go on; the one whose disk has gone lives, and can be ended.
            assert writing.wait(PATIENCE) == 0
            assert inside(name, "echo alive").strip() == "alive"
            assert inside("witness", FILE_SYSTEM)
            assert dom0_daemon.process.poll() is None
            xl("xl", "destroy", name)
            until(lambda: "(null)" not in domains(), "no zombie is left")
        finally:
            subprocess.run(["xl", "destroy", "witness"], check=False, stderr=subprocess.DEVNULL)
