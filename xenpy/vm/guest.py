# SPDX-License-Identifier: MIT
"""Guests of the test VM; runs in dom0, where it is the command `xenvm-guest`.

    xenvm-guest create web --disk 'vdev=xvda,format=raw,target=/root/disk.img'
    xenvm-guest create p --type pvh --paused
    xenvm-guest create r --kernel-arguments root=/dev/xvda --no-wait --disk ...
    xenvm-guest exec web -- cat /proc/partitions
    xenvm-guest console web
    xenvm-guest destroy web

A guest is the release's stock kernel (as an ELF, since libxl is slow at decompressing)
with a small initramfs: busybox, the block and net frontends, ext4 and its tools, an ssh
daemon.  It is reached over a point-to-point vif, 10.77.N.1 in dom0 and 10.77.N.2 in the
guest; N is what the vif nodes in XenStore leave free, so nothing else keeps a record.
With root=DEVICE it goes on with /sbin/init of the ext4 there, which decides what it is.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "GuestError",
    "address",
    "config",
    "console",
    "create",
    "destroy",
    "domid",
    "free_network",
    "main",
]

GUESTS = "/root/guests"
CONSOLE_LOG = "/var/log/xen/console/guest-{name}.log"
SSH_CONFIG = "/etc/xenvm/guest_ssh_config"
RUN = "/run/xenvm/guests"
BOOT_TIMEOUT = 180.0
FAILED = 125


class GuestError(Exception):
    """A guest cannot be made or reached."""


def config(
    name: str,
    *,
    network: int | None,
    kind: str = "pv",
    disks: Sequence[str] = (),
    memory: int = 256,
    vcpus: int = 1,
    fio: bool = False,
    kernel_arguments: str = "",
    lines: Sequence[str] = (),
) -> str:
    """The text of an xl configuration (xl.cfg(5)).

    `network` is N in the addresses, None for a guest without a vif; `lines` are added as
    they are.
    """
    words = ["console=hvc0", "mitigations=off", "quiet", f"xenvm.name={name}"]
    vif = "[]"
    if network is not None:
        words.append(f"xenvm.address=10.77.{network}.2")
        vif = f"['script=vif-xenvm,ip=10.77.{network}.2']"
    if kernel_arguments:
        words.append(kernel_arguments)
    initramfs = "initramfs-fio" if fio else "initramfs"
    text = [
        f"name = {name!r}",
        f"type = {kind!r}",
        f"kernel = '{GUESTS}/vmlinux'",
        f"ramdisk = '{GUESTS}/{initramfs}'",
        f"extra = {' '.join(words)!r}",
        f"memory = {memory}",
        f"vcpus = {vcpus}",
        f"disk = {list(disks)!r}",
        f"vif = {vif}",
        "on_poweroff = 'destroy'",
        "on_reboot = 'destroy'",
        "on_crash = 'destroy'",
        *lines,
    ]
    return "\n".join(text) + "\n"


def domid(name: str) -> int | None:
    """The domain id of the guest called `name`, None if it does not run."""
    done = subprocess.run(["xl", "domid", name], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def address(name: str) -> str:
    """The address of a running guest.  Raises GuestError if it has none."""
    number = domid(name)
    if number is None:
        raise GuestError(f"there is no guest {name!r} (xenvm-guest create {name})")
    found = _store_read(f"/local/domain/0/backend/vif/{number}/0/ip")
    if found is None:
        raise GuestError(f"guest {name!r} was made without a network")
    return found


def free_network() -> int:
    """The lowest N whose addresses no vif of dom0 has."""
    used = {
        _store_read(f"/local/domain/0/backend/vif/{number}/0/ip")
        for number in _store_list("/local/domain/0/backend/vif")
    }
    for network in range(1, 255):
        if f"10.77.{network}.2" not in used:
            return network
    raise GuestError("all 254 networks are taken")


def create(name: str, text: str, *, paused: bool = False) -> None:
    """Run `xl create` on the configuration `text`; its words appear on standard error."""
    directory = Path(RUN)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.cfg"
    path.write_text(text)
    command = ["xl", "create", "-q", *(["-p"] if paused else []), os.fspath(path)]
    status = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
    if status:
        raise GuestError(f"xl create ended with status {status} (the configuration is in {path})")


def destroy(name: str) -> None:
    """Run `xl destroy`."""
    status = subprocess.run(["xl", "destroy", name], check=False).returncode
    if status:
        raise GuestError(f"xl destroy {name} ended with status {status}")


def wait_until_up(name: str, timeout: float = BOOT_TIMEOUT) -> str:
    """Wait until the guest's ssh daemon answers; returns the guest's address."""
    where = address(name)
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection((where, 22), timeout=5) as connection:
                if connection.recv(4).startswith(b"SSH"):
                    return where
        except OSError:
            pass
        if domid(name) is None:
            raise GuestError(f"guest {name!r} died while it booted\n{_console_tail(name)}")
        if time.monotonic() > deadline:
            raise GuestError(
                f"guest {name!r} was not up within {timeout:.0f} s\n{_console_tail(name)}"
            )
        time.sleep(0.1)


def run(name: str, command: Sequence[str]) -> int:
    """Run `command` in the guest with our streams; returns its exact status.

    The first login lets in those that come within a minute: a handshake takes seconds where both
    ends are emulated.  What is left of it has the domid's name, so that no other guest, nor this
    one once it has rebooted, is taken for the one that it led to.
    """
    login = Path(f"{RUN}/{domid(name)}.ssh")
    login.parent.mkdir(parents=True, exist_ok=True)
    where = address(name) if login.exists() else wait_until_up(name)
    line = command[0] if len(command) == 1 else shlex.join(command)
    # ssh's 255 may be its own: the true status stays in a file of the guest.
    mark = f"/tmp/status.{os.getpid()}"
    remote = f"sh -c {shlex.quote(line)}; s=$?; echo $s > {mark}; exit $s"
    terminal = ["-tt"] if sys.stdin.isatty() and sys.stdout.isatty() else ["-T"]
    shared = ("ControlMaster=auto", f"ControlPath={login}", "ControlPersist=60")
    ssh = ["ssh", "-F", SSH_CONFIG, *(word for option in shared for word in ("-o", option))]
    status = subprocess.run([*ssh, *terminal, where, remote], check=False).returncode
    if status != 255:
        return status
    done = subprocess.run(
        [*ssh, "-T", where, f"cat {mark}"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0 and done.stdout.strip() == "255":
        return 255
    raise GuestError(f"lost the connection to guest {name!r}\n{_console_tail(name)}")


def console(name: str) -> str:
    """What a guest's console said.  Raises GuestError if there was no such guest."""
    path = Path(CONSOLE_LOG.format(name=name))
    if not path.exists():
        raise GuestError(f"no guest {name!r} has said anything here ({path})")
    return path.read_text(errors="replace")


def _console_tail(name: str) -> str:
    path = Path(CONSOLE_LOG.format(name=name))
    if not path.exists():
        return "its console said nothing"
    lines = path.read_text(errors="replace").splitlines()[-15:]
    return "\n".join(["its console ended:", *(f"  | {line}" for line in lines)])


def _store_read(path: str) -> str | None:
    done = subprocess.run(["xenstore-read", path], capture_output=True, text=True, check=False)
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def _store_list(path: str) -> list[str]:
    done = subprocess.run(["xenstore-list", path], capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="xenvm-guest", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = top.add_subparsers(dest="verb", required=True)
    new = verbs.add_parser("create", help="create a guest with xl, and wait until it is up")
    new.add_argument("name")
    new.add_argument("--type", choices=["pv", "pvh"], default="pv")
    new.add_argument("--disk", action="append", default=[], help="an xl disk line; repeatable")
    new.add_argument("--paused", action="store_true", help="do not start it, do not wait")
    new.add_argument("--no-wait", action="store_true", help="return when xl does")
    new.add_argument("--fio", action="store_true", help="the initramfs with fio")
    new.add_argument("--memory", type=int, default=0, help="MiB (256; with fio 384)")
    new.add_argument("--vcpus", type=int, default=1)
    new.add_argument("--no-network", action="store_true", help="no vif: exec cannot reach it")
    new.add_argument("--kernel-arguments", default="")
    new.add_argument("--line", action="append", default=[], help="a line for the xl.cfg")
    new.add_argument("--print", action="store_true", help="print the xl.cfg and do nothing")
    for verb, text in (
        ("destroy", "xl destroy"),
        ("console", "print what the guest's console said"),
        ("address", "print the guest's address"),
        ("wait", "wait until the guest is up"),
    ):
        verbs.add_parser(verb, help=text).add_argument("name")
    execute = verbs.add_parser("exec", help="run a command in a guest")
    execute.add_argument("--create", choices=["pv", "pvh"], help="create the guest if need be")
    execute.add_argument("name")
    execute.add_argument("command", nargs="+")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        return _dispatch(arguments)
    except GuestError as error:
        print(f"xenvm-guest: error: {error}", file=sys.stderr)
        return FAILED


def _dispatch(arguments: argparse.Namespace) -> int:
    name: str = arguments.name
    match arguments.verb:
        case "create":
            _create(arguments)
        case "destroy":
            destroy(name)
        case "console":
            sys.stdout.write(console(name))
        case "address":
            print(address(name))
        case "wait":
            wait_until_up(name)
        case _:
            if arguments.create and domid(name) is None:
                extra = ["--type", arguments.create, "--no-wait"]
                _create(parser().parse_args(["create", name, *extra]))
            return run(name, arguments.command)
    return 0


def _create(arguments: argparse.Namespace) -> None:
    with open("/run/lock/xenvm-guest", "w") as lock:
        # Two creations at a time would choose the same network.
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = config(
            arguments.name,
            network=None if arguments.no_network else free_network(),
            kind=arguments.type,
            disks=arguments.disk,
            memory=arguments.memory or (384 if arguments.fio else 256),
            vcpus=arguments.vcpus,
            fio=arguments.fio,
            kernel_arguments=arguments.kernel_arguments,
            lines=arguments.line,
        )
        if arguments.print:
            print(text, end="")
            return
        create(arguments.name, text, paused=arguments.paused)
    if not (arguments.paused or arguments.no_wait or arguments.no_network):
        wait_until_up(arguments.name)


if __name__ == "__main__":
    sys.exit(main())
