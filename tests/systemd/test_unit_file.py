# SPDX-License-Identifier: MIT
"""The unit file under a real systemd, which has booted this dom0."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import xenpy
from conformance.daemon_process import PATIENCE
from conformance.dom0_disk import attached
from xenpy.vm import disk

UNIT_FILE = Path(xenpy.__file__).with_name("data") / "xenpy@.service"
SYSTEM = Path("/etc/systemd/system")
UNIT = "xenpy@block.service"
SIZE = 8 << 20
WATCHDOG = 4


def systemctl(*words: str) -> str:
    return disk.run("systemctl", *words)


def shown(name: str) -> str:
    return systemctl("show", "--value", f"--property={name}", UNIT).strip()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(0.2)


def log() -> str:
    return systemctl("status", "--no-pager", "--lines=40", UNIT)


@pytest.fixture
def unit() -> Iterator[None]:
    """Installed, and started as the man page says."""
    config = Path("/etc/xenpy/block.toml")
    config.parent.mkdir(exist_ok=True)
    config.write_text('driver = "block"\n[options]\nqueues = 1\n')
    shutil.copy(UNIT_FILE, SYSTEM)
    systemctl("daemon-reload")
    systemctl("start", UNIT)
    yield
    subprocess.run(["systemctl", "stop", UNIT], check=False)
    subprocess.run(["systemctl", "reset-failed", UNIT], capture_output=True, check=False)
    for path in (SYSTEM / UNIT_FILE.name, config):
        path.unlink()
    shutil.rmtree(SYSTEM / f"{UNIT}.d", ignore_errors=True)
    systemctl("daemon-reload")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


def read(path: Path, mebibyte: int) -> bytes:
    return subprocess.run(
        ["dd", f"if={path}", "bs=1M", "count=1", f"skip={mebibyte}", "iflag=direct"],
        capture_output=True, check=True, timeout=PATIENCE,
    ).stdout  # fmt: skip


def test_systemd_has_booted_it() -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    done = disk.run(
        "systemd-analyze", "verify", "--man=no", os.fspath(UNIT_FILE).replace("@.", "@block.")
    )
    assert done == ""


def test_it_starts_reloads_and_stops(unit: None, image: Path) -> None:
    """Started: it serves.  Stopped: a guest waits, and goes on after the next start."""
    content = image.read_bytes()
    assert shown("ActiveState") == "active"
    assert shown("StatusText") == "serving vbd3"
    with attached(str(image), SIZE // 512) as path:
        assert read(path, 1) == content[1 << 20 : 2 << 20]
        Path("/etc/xenpy/block.toml").write_text('driver = "block"\n[options]\nqueues = 2\n')
        pid = shown("MainPID")
        systemctl("reload", UNIT)
        until(lambda: "'queues': '2'" in log())
        assert shown("MainPID") == pid

        systemctl("stop", UNIT)
        assert (shown("ActiveState"), shown("Result")) == ("inactive", "success")
        assert shown("ExecMainStatus") == "0"
        assert not children_of(pid)
        reader = subprocess.Popen(
            ["dd", f"if={path}", "bs=1M", "count=1", "skip=3", "iflag=direct"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(1.0)
        assert reader.poll() is None, "it waits for the next daemon"
        systemctl("start", UNIT)
        assert reader.communicate(timeout=PATIENCE)[0] == content[3 << 20 : 4 << 20]
        assert reader.returncode == 0


def children_of(pid: str) -> list[str]:
    done = subprocess.run(["pgrep", "-P", pid], capture_output=True, text=True, check=False)
    return done.stdout.split()


def test_one_that_hangs_is_started_anew(unit: None) -> None:
    """The watchdog: nobody says that all goes well, and systemd ends it and starts another."""
    override = SYSTEM / f"{UNIT}.d" / "watchdog.conf"
    override.parent.mkdir(exist_ok=True)
    override.write_text(f"[Service]\nWatchdogSec={WATCHDOG}\n")
    systemctl("daemon-reload")
    systemctl("restart", UNIT)
    pid = int(shown("MainPID"))
    time.sleep(2 * WATCHDOG)
    assert int(shown("MainPID")) == pid, "while it goes well nobody ends it"
    os.kill(pid, signal.SIGSTOP)
    until(lambda: shown("NRestarts") == "1" and shown("ActiveState") == "active")
    assert int(shown("MainPID")) not in (0, pid)
    assert "Watchdog timeout" in disk.run("journalctl", "--no-pager", "-u", UNIT)


def test_what_it_may_open(unit: None, image: Path) -> None:
    """The devices that a backend needs and no others: no privcmd, no memory, no raw input."""
    pid = shown("MainPID")
    allowed = shown("DeviceAllow")
    assert "/dev/xen/gntdev rw" in allowed
    assert "privcmd" not in allowed
    held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert not any("privcmd" in name for name in held)
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1\n" in status
    assert "Seccomp:\t2\n" in status
    with attached(str(image), SIZE // 512) as path:
        read(path, 0)
        (worker,) = children_of(pid)
        assert "Seccomp:\t2\n" in Path(f"/proc/{worker}/status").read_text()
