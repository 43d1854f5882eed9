# SPDX-License-Identifier: MIT
"""QEMU's command line, as a pure function of what is wanted.

The flags that matter, and why:

* `-cpu max,-smap`: QEMU before 9.1 mis-emulates IRET from user mode to user mode under
  SMAP, and the kernel of a PV dom0 runs in user mode.
* `-rdtscp`: Xen's emulator of SVM guests does not know it, and PVH guests would use it.
* `bootscrub=0`: emulated memory starts as zeros, and untouched pages keep snapshots small.
* `restrict=on`: the machine reaches nothing; the host reaches its ssh port only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xenpy.vm.cache import digest

__all__ = ["Machine", "Sockets", "command_line", "warm_key"]

QEMU = "qemu-system-x86_64"
TCG_CPU = "max,-smap,-rdtscp,-xsave,-avx,-avx2,-fma,-f16c"


class Sockets:
    """The names of the files of a running machine, relative to its directory."""

    QMP = "qmp"
    HEARTBEAT = "beat"
    CONSOLE = "console"
    CONSOLE_LOG = "console.log"


@dataclass(frozen=True)
class Machine:
    """What kind of machine to make.

    Attributes:
        accelerator: "tcg" or "kvm".
        icount: count instructions instead of time, for measuring.
        store: the daemon that serves XenStore, "xenstored" or "oxenstored".
        init: dom0's process 1, "busybox" or "systemd", which takes ten seconds more.
        memory: MiB in all; dom0 gets `dom0_memory` of them.
        cpus: Xen's.  One is the default, for an emulated machine is no slower with it and the
            host keeps the other: a second virtual CPU mostly spins for the locks of the first,
            and where the host has none to spare for it, it takes four times as long.
        dom0_cpus: dom0's virtual ones; 0: as many as Xen has.  Two on one CPU were tried, and
            were unusable: they spin too.
        root: the block device of dom0's root file system.
    """

    accelerator: str = "tcg"
    icount: bool = False
    store: str = "xenstored"
    init: str = "busybox"
    memory: int = 4096
    dom0_memory: int = 1536
    cpus: int = 1
    dom0_cpus: int = 0
    root: str = "/dev/vda"
    xen_arguments: tuple[str, ...] = ()
    kernel_arguments: tuple[str, ...] = ()

    @property
    def cpu(self) -> str:
        """QEMU's -cpu."""
        return "host" if self.accelerator == "kvm" else TCG_CPU

    def with_icount(self) -> Machine:
        """The same machine for measuring: it cannot use KVM."""
        return replace(self, icount=True, accelerator="tcg")

    def as_json(self) -> str:
        """All of it, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Machine:
        """What `as_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        # JSON has no tuples.
        for name in ("xen_arguments", "kernel_arguments"):
            fields[name] = tuple(fields[name])
        return cls(**fields)

    def arguments(self) -> list[str]:
        """The part of QEMU's command line that a snapshot depends on."""
        if self.icount:
            clock = ["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off"]
        elif self.accelerator == "kvm":
            clock = ["-accel", "kvm"]
        else:
            clock = ["-accel", "tcg,thread=multi"]
        return [
            "-machine", "pc", *clock, "-cpu", self.cpu,
            "-smp", str(self.cpus), "-m", str(self.memory),
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        ]  # fmt: skip

    def xen_command_line(self) -> str:
        """Xen's own arguments."""
        memory = f"dom0_mem={self.dom0_memory}M,max:{self.dom0_memory}M"
        vcpus = [f"dom0_max_vcpus={self.dom0_cpus}"] if self.dom0_cpus else []
        return " ".join(
            [memory, *vcpus, "console=com1", "com1=115200", "noreboot", "bootscrub=0", "loglvl=all",
             "guest_loglvl=all", *self.xen_arguments]
        )  # fmt: skip

    def kernel_command_line(self) -> str:
        """dom0's kernel arguments."""
        return " ".join(
            [f"root={self.root}", "console=hvc0", "panic=1", "mitigations=off", "nokaslr", "quiet",
             "loglevel=4", f"xenvm.store={self.store}", f"xenvm.init={self.init}",
             *self.kernel_arguments]
        )  # fmt: skip


def command_line(
    machine: Machine, *, xen: Path, kernel: Path, initrd: Path, disk: Path, incoming: bool
) -> list[str]:
    """QEMU's whole command line.

    QEMU runs in the machine's own directory, so that the names of its sockets stay short.
    `incoming`: wait for a snapshot that is named over QMP later.
    """
    # Commas part the modules and their arguments in -initrd, and options elsewhere.
    kernel_module = f"{_escape(kernel)} {machine.kernel_command_line()}"
    return [
        QEMU,
        *machine.arguments(),
        "-kernel", os.fspath(xen),
        "-append", machine.xen_command_line(),
        "-initrd", f"{kernel_module},{_escape(initrd)}",
        "-drive", f"if=none,id=root,format=qcow2,cache=unsafe,file={_escape(disk)}",
        "-device", "virtio-blk-pci,drive=root",
        "-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        "-chardev", f"socket,id=beat,path={Sockets.HEARTBEAT},server=on,wait=off",
        "-device", "virtio-serial-pci",
        "-device", "virtserialport,chardev=beat,name=xenvm.heartbeat",
        "-chardev",
        f"socket,id=console,path={Sockets.CONSOLE},server=on,wait=off,"
        f"logfile={Sockets.CONSOLE_LOG},logappend=on",
        "-serial", "chardev:console",
        "-qmp", f"unix:{Sockets.QMP},server=on,wait=off",
        *(["-incoming", "defer"] if incoming else []),
    ]  # fmt: skip


def _escape(path: Path) -> str:
    return os.fspath(path).replace(",", ",,")


def warm_key(machine: Machine, image_key: str, qemu_version: str) -> str:
    """Changes when a snapshot of the machine would not fit any more."""
    words: Sequence[str] = command_line(
        machine, xen=Path("x"), kernel=Path("k"), initrd=Path("i"), disk=Path("d"), incoming=False
    )
    return digest(image_key, qemu_version, *words)
