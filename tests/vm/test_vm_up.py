# SPDX-License-Identifier: MIT
"""The machine of `xenvm up`: it stays, it is one of several, it dies clean."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import HARNESS, Xenvm, is_alive, wait_until


def status(xenvm: Xenvm, name: str) -> dict[str, Any] | None:
    """What `status` says of one machine; None if it does not run."""
    rows: list[dict[str, Any]] = json.loads(xenvm.output("status", "--json"))
    return next((row for row in rows if row["name"] == name), None)


def test_it_stays(xenvm: Xenvm, instance: str) -> None:
    xenvm.output("exec", "--name", instance, "--", "echo here > /run/trace")
    assert xenvm.output("exec", "--name", instance, "--", "cat", "/run/trace") == "here\n"
    info = status(xenvm, instance)
    assert info is not None
    assert (info["release"], info["xen"], info["idle_seconds"]) == ("trixie", "4.20", 900)
    assert is_alive(info["pid"])
    assert is_alive(info["qemu_pid"])
    assert instance[:16] in xenvm.output("status")


@pytest.mark.parametrize("expected", [0, 7, 125, 255])
def test_statuses(xenvm: Xenvm, instance: str, expected: int) -> None:
    done = xenvm.run("exec", "--name", instance, "--", f"exit {expected}")
    assert done.returncode == expected
    assert b"xenvm: error" not in done.stderr


def test_a_killed_command_has_the_shell_s_status(xenvm: Xenvm, instance: str) -> None:
    assert xenvm.run("exec", "--name", instance, "--", "kill -9 $$").returncode == 128 + 9


def test_the_checkout_is_there_and_fresh_at_each_exec(xenvm: Xenvm, instance: str) -> None:
    code = "import xenpy, xenpy._ffi.stable as s, os; print(os.getcwd(), xenpy.__file__)"
    text = xenvm.output("exec", "--name", instance, "--", "python3", "-c", code)
    assert text.split()[1].endswith("/xenpy/__init__.py")
    xenvm.output("exec", "--name", instance, "--", "rm", "tests/conftest.py")
    xenvm.output("exec", "--name", instance, "--", "test", "-e", "tests/conftest.py")


def test_fresh_ignores_it(xenvm: Xenvm, instance: str) -> None:
    xenvm.output("exec", "--name", instance, "--", "touch /run/mine")
    done = xenvm.run("exec", "--name", instance, "--fresh", "--", "test -e /run/mine")
    assert done.returncode == 1


def test_push_and_pull_a_file(xenvm: Xenvm, instance: str, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "in").write_bytes(data)
    xenvm.output("push", "--name", instance, str(tmp_path / "in"), "/root/a file")
    xenvm.output("pull", "--name", instance, "/root/a file", str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == data
    # Into directories, as cp does.
    xenvm.output("push", "--name", instance, str(tmp_path / "in"), "/root")
    (tmp_path / "there").mkdir()
    xenvm.output("pull", "--name", instance, "/root/in", str(tmp_path / "there"))
    assert (tmp_path / "there/in").read_bytes() == data


def test_push_and_pull_a_directory(xenvm: Xenvm, instance: str, tmp_path: Path) -> None:
    (tmp_path / "top/below").mkdir(parents=True)
    (tmp_path / "top/below/file").write_text("x\n")
    (tmp_path / "top/run").write_text("#!/bin/sh\n")
    (tmp_path / "top/run").chmod(0o755)
    xenvm.output("push", "--name", instance, str(tmp_path / "top"), "/root/pushed")
    xenvm.output("pull", "--name", instance, "/root/pushed", str(tmp_path / "back"))
    assert (tmp_path / "back/below/file").read_text() == "x\n"
    assert (tmp_path / "back/run").stat().st_mode & 0o777 == 0o755


def test_what_is_not_there_is_said(xenvm: Xenvm, instance: str, tmp_path: Path) -> None:
    done = xenvm.run("pull", "--name", instance, "/no/such", str(tmp_path / "out"))
    assert (done.returncode, list(tmp_path.iterdir())) == (HARNESS, [])
    assert b"there is no /no/such in dom0" in done.stderr
    done = xenvm.run("push", "--name", instance, str(tmp_path / "none"), "/root")
    assert done.returncode == HARNESS


def test_ssh_takes_a_shell_s_input(xenvm: Xenvm, instance: str) -> None:
    done = xenvm.run("ssh", "--name", instance, data=b"xl list | grep -c Domain-0\nexit 3\n")
    assert done.returncode == 3
    assert done.stdout == b"1\n"


def test_a_second_up_is_refused(xenvm: Xenvm, instance: str) -> None:
    done = xenvm.run("up", "--name", instance)
    assert done.returncode == HARNESS
    assert b"is running already" in done.stderr
    assert b"--name makes another" in done.stderr


def test_two_do_not_collide(xenvm: Xenvm, instance: str) -> None:
    other = f"other.{os.getpid()}"
    xenvm.output("up", "--name", other, "--release", "bookworm")
    try:
        for name, version in ((instance, "4.20"), (other, "4.17")):
            text = xenvm.output("exec", "--name", name, "--", "xl info xen_version")
            assert text.startswith(version)
        ports = {row["port"] for row in json.loads(xenvm.output("status", "--json"))}
        assert len(ports) >= 2
    finally:
        xenvm.output("down", "--name", other)
    assert status(xenvm, other) is None
    assert status(xenvm, instance) is not None


def test_ctrl_c_ends_the_command_and_not_the_machine(xenvm: Xenvm, instance: str) -> None:
    script = "echo ready; exec sleep 4321"
    with xenvm.started("exec", "--name", instance, "--", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    gone = xenvm.run("exec", "--name", instance, "--", "sleep 1; pgrep -f '^sleep 4321'")
    assert (gone.returncode, gone.stdout) == (1, b"")


def test_down_leaves_nothing(xenvm: Xenvm) -> None:
    name = f"down.{os.getpid()}"
    xenvm.output("up", "--name", name)
    info = status(xenvm, name)
    assert info is not None
    xenvm.output("down", "--name", name)
    assert not is_alive(info["qemu_pid"])
    assert not is_alive(info["pid"])
    assert status(xenvm, name) is None
    done = xenvm.run("logs", "--name", name)
    assert done.returncode == HARNESS


def test_a_dead_supervisor_leaves_no_lock(xenvm: Xenvm) -> None:
    name = f"stale.{os.getpid()}"
    xenvm.output("up", "--name", name)
    info = status(xenvm, name)
    assert info is not None
    os.kill(info["pid"], signal.SIGKILL)
    wait_until(lambda: not is_alive(info["qemu_pid"]))
    assert status(xenvm, name) is None
    try:
        xenvm.output("up", "--name", name)
        assert xenvm.output("exec", "--name", name, "--", "echo again") == "again\n"
    finally:
        xenvm.output("down", "--name", name)


def test_why_it_died_can_be_read(xenvm: Xenvm) -> None:
    name = f"dead.{os.getpid()}"
    xenvm.output("up", "--name", name)
    try:
        done = xenvm.run("exec", "--name", name, "--", "echo c > /proc/sysrq-trigger; sleep 600")
        assert done.returncode == HARNESS
        said = done.stderr.decode()
        assert f"the instance '{name}' is gone" in said
        assert "dom0's kernel panicked" in said
        assert "dom0's kernel panicked" in xenvm.output("logs", "--name", name)
        assert status(xenvm, name) is None
    finally:
        xenvm.output("down", "--name", name)


def test_an_idle_machine_ends_itself(xenvm: Xenvm) -> None:
    name = f"idle.{os.getpid()}"
    xenvm.output("up", "--name", name, "--idle", "1")
    wait_until(lambda: status(xenvm, name) is None, 30)
    xenvm.output("down", "--name", name)
