# SPDX-License-Identifier: MIT
"""The host: what it must have installed, and whether it can virtualise.

Only the Debian packages named here are ever installed, by apt-get, and it is said which.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from xenpy.vm import progress
from xenpy.vm.errors import VmError
from xenpy.vm.qemu import QEMU

__all__ = ["VM_PACKAGES", "accelerator", "ensure_packages", "missing_packages"]

VM_PACKAGES = (
    "qemu-system-x86", "qemu-utils", "mmdebstrap", "e2fsprogs", "openssh-client", "zstd",
    "util-linux", "debian-archive-keyring", "git",
)  # fmt: skip
USER_PACKAGES = ("uidmap",)
TEST_PACKAGES = (
    "python3-venv", "python3-dev", "gcc", "libc6-dev", "libxen-dev", "python3-libnbd",
)  # fmt: skip
LONG_TEST_PACKAGES = ("clang", "libclang-rt-dev")
"""Of `xenvm test --all` alone: the fuzzer."""


def missing_packages(wanted: Sequence[str]) -> list[str]:
    """Which of `wanted` dpkg does not know as installed."""
    if shutil.which("dpkg-query") is None:
        raise VmError(
            "this is not a Debian system (there is no dpkg-query)",
            hint="xenvm needs Debian 12 or 13 on x86-64; a container or VM of it will do",
        )
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    installed = {
        words[0] for line in done.stdout.splitlines()
        if len(words := line.split()) == 2 and words[1] == "installed"
    }  # fmt: skip
    return [name for name in wanted if name not in installed]


def ensure_packages(wanted: Sequence[str]) -> None:
    """Install what is missing of `wanted`; says which.  Raises VmError if that cannot be."""
    extra = () if os.geteuid() == 0 else USER_PACKAGES
    missing = missing_packages([*wanted, *extra])
    if not missing:
        return
    progress.note(f"Debian packages missing: {' '.join(missing)}")
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        if shutil.which("sudo") is None:
            raise VmError(
                "packages are missing, and neither root nor sudo is there to install them",
                hint=f"as root, run: {' '.join(command)}",
            )
        command = ["sudo", *command]
    prefix = command[: command.index("apt-get")]
    with progress.step(f"installing {' '.join(missing)}"):
        _apt([*prefix, "apt-get", "update"], check=False)
        _apt([*prefix, "env", "DEBIAN_FRONTEND=noninteractive", *command[len(prefix) :]])
    if left := missing_packages(missing):
        raise VmError(f"apt-get did not install: {' '.join(left)}")


def _apt(command: list[str], *, check: bool = True) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    if check and done.returncode:
        raise VmError(
            f"apt-get ended with status {done.returncode}",
            details="\n".join(done.stdout.splitlines()[-15:]),
            hint=f"run it by hand: {' '.join(command)}",
        )


def accelerator(
    cpuinfo: Path = Path("/proc/cpuinfo"), device: Path = Path("/dev/kvm")
) -> tuple[str, str]:
    """("kvm" or "tcg", why).  KVM only if the CPU has it *and* a probe VM starts with it.

    /dev/kvm may exist and still be useless: QEMU then aborts when it sets an MSR.
    """
    forced = os.environ.get("XENVM_ACCEL")
    if forced in ("kvm", "tcg"):
        return forced, "XENVM_ACCEL says so"
    flags: set[str] = set()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            break
    if not flags & {"svm", "vmx"}:
        return "tcg", "the CPU shows neither svm nor vmx"
    if not os.access(device, os.R_OK | os.W_OK):
        return "tcg", f"no access to {device}"
    failure = _probe_kvm()
    return ("tcg", f"a probe VM did not start: {failure}") if failure else ("kvm", "a probe works")


def _probe_kvm() -> str:
    """Start a VM with KVM that switches itself off; "" if it worked, else QEMU's words.

    The boot sector holds two instructions, `mov dx, 0x501; out dx, al`: a write to the
    isa-debug-exit device ends QEMU with status 2 * AL + 1.
    """
    with tempfile.NamedTemporaryFile(suffix=".probe") as disk:
        code = bytes.fromhex("b020ba0105ee")
        disk.write(code.ljust(510, b"\0") + b"\x55\xaa")
        disk.flush()
        command = [
            QEMU, "-accel", "kvm", "-cpu", "host", "-m", "32", "-nodefaults", "-display", "none",
            "-drive", f"format=raw,file={disk.name},readonly=on",
            "-device", "isa-debug-exit,iobase=0x501,iosize=1",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=15, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "it hung"
        except OSError as error:
            return str(error)
        if done.returncode == 2 * 0x20 + 1:
            return ""
        words = done.stderr.strip().splitlines()
        return words[-1] if words else f"status {done.returncode}"
