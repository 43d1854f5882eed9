# SPDX-License-Identifier: MIT
"""The small parts of the harness: releases, errors, progress, console, QEMU's command, QMP."""

from __future__ import annotations

import ast
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from xenpy.vm import console, guest, host, progress, qmp, releases
from xenpy.vm.errors import VmError
from xenpy.vm.qemu import Machine, command_line, warm_key
from xenpy.vm.qmp import connect_unix, parse_forwarded_port

PACKAGE = Path(progress.__file__).parent


def test_the_package_imports_the_standard_library_only() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                names = [node.module or ""]
            else:
                continue
            for name in names:
                ours = name == "xenpy.vm" or name.startswith("xenpy.vm.")
                assert ours or name.partition(".")[0] in sys.stdlib_module_names, (path, name)


def test_the_default_release_is_one() -> None:
    assert releases.DEFAULT in releases.RELEASES
    assert releases.release("bookworm").hypervisor == "xen-4.17-amd64.gz"


def test_an_unknown_release_names_the_known() -> None:
    with pytest.raises(VmError, match="unknown release 'sid'") as caught:
        releases.release("sid")
    assert "trixie, bookworm" in caught.value.hint


def test_errors_say_one_fact_per_line() -> None:
    error = VmError("it broke", hint="mend it", details="first\nsecond")
    assert error.render().splitlines() == [
        "  | first",
        "  | second",
        "xenvm: error: it broke",
        "xenvm: hint: mend it",
    ]
    assert VmError("alone").render() == "xenvm: error: alone"


# Progress


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_show_after", 0.05)
    monkeypatch.setattr(progress, "REPEAT_EVERY", 0.1)


def test_a_fast_step_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.step("quick"):
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("_impatient")
def test_a_slow_step_says_that_it_lives(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.step("slow"):
        time.sleep(0.4)
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == ""
    assert lines[0] == "xenvm: slow ..."
    assert lines[1] == "xenvm: slow ... 0 s"
    assert lines[-1].startswith("xenvm: slow: done in 0.")


@pytest.mark.usefixtures("_impatient")
def test_a_failed_step_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with progress.step("doomed"):
            time.sleep(0.2)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        work()
    assert "xenvm: doomed: failed after 0." in capsys.readouterr().err


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    progress.quiet(True)
    try:
        progress.note("anything")
    finally:
        progress.quiet(False)
    assert capsys.readouterr().err == ""


# The console


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("(XEN) Panic on CPU 0:", "Xen panicked"),
        ("(XEN) [   12.5] Panic on CPU 1:", "Xen panicked"),
        ("(XEN) Hardware Dom0 crashed: 'noreboot' set - not rebooting.", "dom0 stopped"),
        ("(XEN) Domain 0 (vcpu#0) crashed on cpu#0:", "dom0 crashed"),
        ("[    3.2] Kernel panic - not syncing: sysrq triggered crash", "dom0's kernel panicked"),
        ("xenvm: setup of dom0 failed", "dom0's set-up failed"),
    ],
)
def test_a_panic_is_found(line: str, meaning: str) -> None:
    text = f"before\r\n\x1b[31m{line}\x1b[0m\r\nafter\r\n"
    assert console.find_panic(text) == f"{meaning}: {line}"


def test_no_panic_where_somebody_only_says_so() -> None:
    assert console.find_panic("$ echo 'Xen Panic on CPU 0:'\nHardware Dom0 crashed\n") == ""


def test_escape_sequences_do_not_reach_the_terminal() -> None:
    assert console.clean("a\x1b[2J\x1b[?25lb\x07\x08c\r\nd\te") == "abc\nd\te"


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert console.last_lines(path) == ""
    path.write_bytes(b"".join(b"line %d \xff\n" % number for number in range(50)))
    assert console.last_lines(path, 2).splitlines() == ["line 48 �", "line 49 �"]
    assert len(console.read_tail(path, 100)) == 100


# QEMU


def command(machine: Machine, **options: bool) -> list[str]:
    return command_line(
        machine, xen=Path("/c/xen"), kernel=Path("/c,d/vmlinuz"), initrd=Path("/c,d/initrd"),
        disk=Path("/c,d/disk"), incoming=options.get("incoming", False),
    )  # fmt: skip


def after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def test_commas_in_paths_are_escaped() -> None:
    words = command(Machine())
    assert after(words, "-initrd").startswith("/c,,d/vmlinuz root=/dev/vda ")
    assert after(words, "-initrd").endswith(",/c,,d/initrd")
    assert after(words, "-drive").endswith("file=/c,,d/disk")


def test_the_machine_reaches_nothing_and_is_reached_from_here_only() -> None:
    words = command(Machine())
    assert "restrict=on" in after(words, "-netdev").split(",")
    assert "hostfwd=tcp:127.0.0.1:0-:22" in after(words, "-netdev").split(",")


def test_what_keeps_emulated_xen_alive() -> None:
    assert {"-smap", "-rdtscp", "-xsave"} <= set(after(command(Machine()), "-cpu").split(","))
    assert after(command(Machine(accelerator="kvm")), "-cpu") == "host"


def test_icount_is_single_threaded_emulation() -> None:
    words = command(Machine(accelerator="kvm").with_icount())
    assert after(words, "-accel") == "tcg,thread=single"
    assert after(words, "-icount") == "shift=1,sleep=off"


def test_only_a_snapshot_is_waited_for() -> None:
    assert "-incoming" not in command(Machine())
    assert after(command(Machine(), incoming=True), "-incoming") == "defer"


def test_a_snapshot_belongs_to_one_machine() -> None:
    machine = Machine()
    others = [
        machine.with_icount(),
        replace(machine, memory=5000),
        replace(machine, cpus=2),
        replace(machine, dom0_cpus=2),
        replace(machine, store="oxenstored"),
        replace(machine, kernel_arguments=("x",)),
        replace(machine, xen_arguments=("x",)),
        replace(machine, accelerator="kvm"),
    ]
    keys = {warm_key(one, "image", "QEMU 7.2") for one in [machine, *others]}
    keys |= {warm_key(machine, "other", "QEMU 7.2"), warm_key(machine, "image", "QEMU 8")}
    assert len(keys) == len(others) + 3


def test_a_socket_that_is_there_may_not_listen_yet(tmp_path: Path) -> None:
    """QEMU binds it first."""
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        begin = threading.Timer(0.1, listener.listen)
        begin.start()
        connect_unix(path, 10).close()
        begin.join()


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "LISTEN_PATIENCE", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        with pytest.raises(ConnectionRefusedError):
            connect_unix(tmp_path / "qmp", 10)


def test_the_forwarded_port() -> None:
    head = "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n"
    row = "  TCP[HOST_FORWARD]  12       127.0.0.1 {}       10.0.2.15    22     0     0\n"
    assert parse_forwarded_port(f"net:\n{head}{row.format(40659)}") == 40659
    for text in ("", head, row.format(0)):
        with pytest.raises(VmError, match="forwards no port"):
            parse_forwarded_port(text)


# The host


def test_an_accelerator_may_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENVM_ACCEL", "kvm")
    assert host.accelerator()[0] == "kvm"


@pytest.mark.parametrize(
    ("flags", "device", "probe", "chosen", "why"),
    [
        ("fpu sse", True, "", "tcg", "neither svm nor vmx"),
        ("fpu vmx", False, "", "tcg", "no access to"),
        ("fpu svm", True, "it hung", "tcg", "a probe VM did not start: it hung"),
        ("fpu svm", True, "", "kvm", "a probe works"),
    ],
)
def test_kvm_only_where_it_works(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    device: bool,
    probe: str,
    chosen: str,
    why: str,
) -> None:
    monkeypatch.delenv("XENVM_ACCEL", raising=False)
    monkeypatch.setattr(host, "_probe_kvm", lambda: probe)
    cpuinfo, kvm = tmp_path / "cpuinfo", tmp_path / "kvm"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    if device:
        kvm.touch()
    accelerator, reason = host.accelerator(cpuinfo, kvm)
    assert accelerator == chosen
    assert why in reason


def dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str) -> None:
    """Put a dpkg-query that prints `listing` first, and nothing else, on the PATH."""
    program = tmp_path / "bin" / "dpkg-query"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '{listing}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dpkg(tmp_path, monkeypatch, "gcc installed\\nzstd config-files\\n")
    assert host.missing_packages(["gcc", "zstd", "git"]) == ["zstd", "git"]


def test_not_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VmError, match="not a Debian system"):
        host.missing_packages(["gcc"])


def test_missing_packages_without_the_right_to_install_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dpkg(tmp_path, monkeypatch, "")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(VmError, match="neither root nor sudo") as caught:
        host.ensure_packages(["gcc"])
    assert caught.value.hint.startswith("as root, run: apt-get install -y")
    assert " gcc" in caught.value.hint


# Guests


def test_a_guest_s_configuration() -> None:
    text = guest.config(
        "web", network=3, kind="pvh", disks=["vdev=xvda,target=/d.img"], lines=["cpuid = 'host'"]
    )
    names: dict[str, object] = {}
    exec(text, names)  # xl's configurations happen to be Python
    assert names["name"] == "web"
    assert names["type"] == "pvh"
    assert names["disk"] == ["vdev=xvda,target=/d.img"]
    assert names["vif"] == ["script=vif-xenvm,ip=10.77.3.2"]
    assert "xenvm.address=10.77.3.2" in str(names["extra"]).split()
    assert names["cpuid"] == "host"


def test_a_guest_without_a_network() -> None:
    text = guest.config("web", network=None)
    assert "vif = []" in text.splitlines()
    assert "address" not in text
