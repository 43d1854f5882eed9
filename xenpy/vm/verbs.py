# SPDX-License-Identifier: MIT
"""What each verb of `xenvm` does, but for `test`.  The docstrings are the help texts."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from xenpy.vm import console as consoles
from xenpy.vm import progress, supervisor
from xenpy.vm.bench import run as benchmarks
from xenpy.vm.bench.report import NANOSECONDS_PER_INSTRUCTION
from xenpy.vm.bench.run import show
from xenpy.vm.context import Context
from xenpy.vm.errors import UsageError, VmError
from xenpy.vm.instance import Instance
from xenpy.vm.qemu import Sockets

__all__ = [
    "bench", "console", "demo", "down", "execute", "logs", "pull", "push", "shown", "ssh",
    "status", "up",
]  # fmt: skip

DEMO_JSON = "/run/xenvm/demo.json"


def shown(command: Sequence[str]) -> str:
    """A command line as one would type it."""
    return shlex.join(command)


def execute(context: Context, arguments: argparse.Namespace) -> int:
    """Run CMD as root in dom0, with this checkout built, importable and the working directory.

    In the machine that `xenvm up` started, if it runs and is as the options say; else, or with
    --fresh, in a pristine one that ends with the command.  Standard input, output and error are
    passed through, and the exit status is CMD's.  One word is taken as a line for the shell.

    examples:
      xenvm exec -- xl info
      xenvm exec -- 'xl list | tail -1'
      xenvm exec --fresh --release bookworm -- python3 -m pytest tests/xen
      xenvm exec --guest web -- cat /proc/partitions
      xenvm exec --dry-run -- true
    """
    command = _command(arguments, "exec")
    with context.session(fresh=arguments.fresh) as session:
        if arguments.guest:
            command = _in_guest(arguments, command)
        line: list[str] | str = command[0] if len(command) == 1 else command
        hint = "--timeout SECONDS waits longer; --save-console FILE keeps the console"
        return session.run(line, timeout=arguments.timeout, hint=hint)


def demo(context: Context, arguments: argparse.Namespace) -> int:
    """A Python backend in dom0 serves a disk to a stock Debian guest on a real Xen.

    Boots the machine; makes a 64 MiB image; starts `xenpy serve block`; creates a guest with
    xl whose disk is that image; in the guest, the stock xen-blkfront: mkfs, mount, 16 MiB of
    random files, fsync, sha256, unmount; detaches; checks the file system and the same sha256
    out of the image in dom0.  Exits 0 only if all of that held.

    examples:
      xenvm demo
      xenvm demo --release bookworm --json demo.json
    """
    with context.fresh() as (_, session):
        command = ["python3", "-m", "xenpy.vm.dom0_demo", "--json", DEMO_JSON]
        code = session.run(command, stdin=subprocess.DEVNULL)
        test = ["test", "-e", DEMO_JSON]
        if arguments.json is not None and session.run(test, stdin=subprocess.DEVNULL) == 0:
            arguments.json.write_text(session.output(["cat", DEMO_JSON]))
    return code


def up(context: Context, arguments: argparse.Namespace) -> int:
    """Start a machine that stays until `xenvm down`, or until nobody has used it for a while.

    `exec`, `push`, `pull`, `ssh`, `console` and `logs` then work in it.  --name gives it a
    name, so that there can be several.

    examples:
      xenvm up
      xenvm up --name old --release bookworm --idle 600
    """
    if context.save_console is not None:
        hint = "`xenvm logs` and `xenvm console` show it"
        raise UsageError("`xenvm up` keeps the console itself, without --save-console", hint=hint)
    context.prepare()
    info = supervisor.launch(context, arguments.idle)
    print(
        f"{info.name}: Xen {info.xen} ({info.release}) under {info.accelerator}, ends after "
        f"{info.idle_seconds:.0f} s without use"
    )
    return 0


def down(context: Context, arguments: argparse.Namespace) -> int:
    """End the machine that `xenvm up` started, and remove what it left.  Harmless when there
    is none.

    example:
      xenvm down --name old
    """
    if not Instance(context.cache, context.name).stop():
        progress.note(f"no instance {context.name!r} was running")
    return 0


def status(context: Context, arguments: argparse.Namespace) -> int:
    """List the machines that `xenvm up` started.

    examples:
      xenvm status
      xenvm status --json
    """
    running = [one for one in Instance.all(context.cache) if one.is_running()]
    if arguments.json:
        print(json.dumps([asdict(one.info()) for one in running], indent=2))
        return 0
    if not running:
        print("nothing runs (xenvm up starts a machine)")
        return 0
    print(f"{'NAME':16} {'RELEASE':10} {'XEN':6} {'STORE':11} {'ACCEL':6} {'UP':>8} {'UNUSED':>8}")
    for one in running:
        info = one.info()
        age, unused = time.time() - info.started, time.time() - one.last_used()
        print(
            f"{info.name:16} {info.release:10} {info.xen:6} {info.store:11} {info.accelerator:6} "
            f"{age:7.0f}s {max(0.0, unused):7.0f}s"
        )
    return 0


def push(context: Context, arguments: argparse.Namespace) -> int:
    """Copy a file or a directory into the dom0 of the running machine, as `cp -r` would.

    The checkout itself is pushed by every `exec`; this is for everything else.

    example:
      xenvm push disk.img /root/disk.img
    """
    source, target = Path(arguments.source), shlex.quote(arguments.target)
    if not source.exists():
        raise VmError(f"there is no {source}")
    name = shlex.quote(source.resolve().name)
    inside = f"if [ -d {target} ]; then t={target}/{name}; else t={target}; fi"
    with context.instance(push=False) as (_, session):
        if source.is_dir():
            command = ["tar", "-C", os.fspath(source), "-cf", "-", "."]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
                assert tar.stdout is not None
                remote = f'{inside}; mkdir -p "$t" && tar -C "$t" -xf -'
                code = session.run(remote, cwd="/", stdin=tar.stdout)
            return code or tar.returncode
        with source.open("rb") as content:
            return session.run(f'{inside}; cat > "$t"', cwd="/", stdin=content)


def pull(context: Context, arguments: argparse.Namespace) -> int:
    """Copy a file or a directory out of the dom0 of the running machine, as `cp -r` would.

    example:
      xenvm pull /var/log/xen logs
    """
    source, target = arguments.source.rstrip("/"), Path(arguments.target)
    if target.is_dir():
        target = target / Path(source).name
    quoted = shlex.quote(source)
    with context.instance(push=False) as (_, session):
        # ssh would read to its end what the caller has, a list of files perhaps.
        run = partial(session.run, cwd="/", stdin=subprocess.DEVNULL)
        if run(["test", "-e", source]):
            raise VmError(f"there is no {source} in dom0")
        if run(["test", "-d", source]) == 0:
            target.mkdir(parents=True, exist_ok=True)
            command = ["tar", "-C", os.fspath(target), "-xf", "-"]
            with subprocess.Popen(command, stdin=subprocess.PIPE) as tar:
                assert tar.stdin is not None
                code = run(f"tar -C {quoted} -cf - .", stdout=tar.stdin)
                tar.stdin.close()
            return code or tar.returncode
        part = target.with_name(f".{target.name}.part")
        try:
            with part.open("wb") as content:
                code = run(f"cat {quoted}", stdout=content)
            if code == 0:
                part.rename(target)
        finally:
            part.unlink(missing_ok=True)
        return code


def ssh(context: Context, arguments: argparse.Namespace) -> int:
    """A shell as root in dom0 (or in a guest), in the directory of the checkout.

    examples:
      xenvm ssh
      xenvm ssh --guest web
    """
    with context.session(fresh=arguments.fresh) as session:
        command = ["bash", "-i"]
        if arguments.guest:
            command = _in_guest(arguments, ["sh"])
        return session.run(command, tty=sys.stdin.isatty())


def console(context: Context, arguments: argparse.Namespace) -> int:
    """Follow the serial console of the running machine (Xen's and dom0's) until Ctrl-C.

    With --guest, print what that guest's console has said so far.

    examples:
      xenvm console
      xenvm console --guest web
    """
    if arguments.guest:
        with context.instance(push=False) as (_, session):
            command = ["xenvm-guest", "console", arguments.guest]
            return session.run(command, cwd="/", stdin=subprocess.DEVNULL)
    instance = _running(context)
    command = ["tail", "-n", "+1", "-f", os.fspath(instance.directory / Sockets.CONSOLE_LOG)]
    return subprocess.run(command, check=False).returncode


def logs(context: Context, arguments: argparse.Namespace) -> int:
    """Print what the machine of `xenvm up` has said: its console, QEMU's own words, and, if
    it has died, why.

    example:
      xenvm logs --name old
    """
    directory = Instance(context.cache, context.name).directory
    found = False
    for name in (Sockets.CONSOLE_LOG, "qemu.log", "supervisor.log", "death"):
        path = directory / name
        if path.exists() and path.stat().st_size:
            found = True
            print(f"==> {name} <==\n{consoles.clean(path.read_text(errors='replace'))}")
    if not found:
        if context.running_instance() is None:
            hint = "`xenvm up` starts one"
            raise VmError(f"instance {context.name!r} has left no logs", hint=hint)
        progress.note(f"instance {context.name!r} runs, and has said nothing so far")
    return 0


def bench(context: Context, arguments: argparse.Namespace) -> int:
    """Count the instructions that the whole machine executes while CMD runs in dom0; or, with
    `block`, measure the block backend against the kernel's and QEMU's, with `streams` vchans and
    consoles against libxenvchan, netback and xenconsoled.

    The machine's clock counts instructions instead of time, so a figure is the same on a busy
    host as on an idle one.  Idle time counts too (the clock then jumps), so CMD should be busy.

    Both print a table, some of whose cells have a gate; --check makes a missed gate
    status 1.  docs/howto/benchmark.md tells how to read it.

    examples:
      xenvm bench --rounds 5 -- python3 -c 'sum(range(100000))'
      xenvm bench block --json table.json --check
      xenvm bench block --cells 'randread-qd32/file/*' --cells wakeups
      xenvm bench streams --cells 'stream/*'
    """
    if arguments.benchmark in benchmarks.BENCHMARKS:
        if arguments.command:
            raise UsageError(f"`xenvm bench {arguments.benchmark}` takes no command")
        return benchmarks.bench(context, arguments)
    if arguments.benchmark is not None:
        known = ", ".join(f"`{name}`" for name in benchmarks.BENCHMARKS)
        hint = (
            f"there are {known}; a command comes after `--`: xenvm bench -- {arguments.benchmark}"
        )
        raise UsageError(f"no benchmark {arguments.benchmark!r}", hint=hint)
    if arguments.check or arguments.cells:
        raise UsageError("--check and --cells are for `xenvm bench block` and `streams`")
    command = _command(arguments, "bench")
    timed = (
        "import subprocess, sys, time\n"
        "for _ in range(int(sys.argv[1])):\n"
        "    began = time.monotonic_ns()\n"
        "    done = subprocess.run(sys.argv[2:], stdout=2, check=False)\n"
        "    print(time.monotonic_ns() - began, done.returncode)\n"
    )
    with context.fresh() as (vm, session):
        path = vm.directory / "bench"
        with path.open("wb") as output:
            code = session.run(
                ["python3", "-c", timed, str(arguments.rounds), *command],
                stdin=subprocess.DEVNULL, stdout=output,
            )  # fmt: skip
        rows = [line.split() for line in path.read_text().splitlines()]
    if code or len(rows) != arguments.rounds:
        raise VmError(f"the command could not be measured (status {code})")
    counts = [int(spent) // NANOSECONDS_PER_INSTRUCTION for spent, _ in rows]
    table = "".join(
        f"round {number}: {count:>15,} instructions\n" for number, count in enumerate(counts, 1)
    )
    show(table, json.dumps({"command": command, "instructions": counts}) + "\n", arguments.json)
    statuses = [int(status) for _, status in rows]
    # Python's for who was killed by a signal is negative, and would be less than 0.
    return max(128 - status if status < 0 else status for status in statuses)


def _command(arguments: argparse.Namespace, verb: str) -> list[str]:
    command: list[str] = arguments.command
    if not command:
        raise UsageError(f"no command for {verb}", hint=f"it comes after `--`: xenvm {verb} -- CMD")
    return command


def _in_guest(arguments: argparse.Namespace, command: list[str]) -> list[str]:
    return ["xenvm-guest", "exec", "--create", arguments.type, arguments.guest, "--", *command]


def _running(context: Context) -> Instance:
    instance = context.running_instance()
    if instance is None:
        raise VmError(f"no instance {context.name!r} is running", hint="`xenvm up` starts one")
    return instance
