# SPDX-License-Identifier: MIT
"""The process behind `xenvm up`: holds the instance's lock, watches QEMU, ends it when idle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from xenpy.vm import image
from xenpy.vm.cache import Cache
from xenpy.vm.checkout import find_root
from xenpy.vm.context import Context
from xenpy.vm.errors import VmDiedError, VmError
from xenpy.vm.instance import Info, Instance
from xenpy.vm.machine import Vm, end_on_signals
from xenpy.vm.qemu import Machine

__all__ = ["DEFAULT_IDLE", "launch", "main"]

DEFAULT_IDLE = 4 * 3600.0
POLL = 2.0


def launch(context: Context, idle: float) -> Info:
    """Start the supervisor of `context.name` in the background; returns when it is ready."""
    instance = Instance(context.cache, context.name)
    if instance.is_running():
        raise VmError(
            f"instance {context.name!r} is running already",
            hint="`xenvm status` shows it, `xenvm down` ends it; --name makes another",
        )
    instance.directory.mkdir(parents=True, exist_ok=True)
    log = instance.directory / "supervisor.log"
    command = [
        sys.executable, "-m", "xenpy.vm.supervisor", os.fspath(context.cache.root), context.name,
        context.release.name, context.machine.as_json(), str(int(context.cold)),
        str(context.patience), str(idle),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.fspath(find_root())}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
            cwd="/", start_new_session=True,
        )  # fmt: skip
    try:
        while not instance.is_running():
            if process.poll() is not None:
                details = log.read_text(errors="replace")
                raise VmDiedError(f"instance {context.name!r} did not start", details=details)
            time.sleep(0.02)
    except BaseException:
        process.terminate()
        raise
    return instance.info()


def main(argv: list[str]) -> int:
    """Run the supervisor; the arguments are those that `launch` gives."""
    root, name, release, machine, cold, patience, idle = argv
    end_on_signals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    context = Context(
        cache=Cache(Path(root)), release_name=release, name=name,
        machine=Machine.from_json(machine), patience=float(patience), cold=cold == "1",
    )  # fmt: skip
    try:
        _supervise(context, float(idle))
    except VmError as error:
        print(error.render(), file=sys.stderr, flush=True)
        return 1
    return 0


def _supervise(context: Context, idle: float) -> None:
    instance = Instance(context.cache, context.name)
    with instance.held():
        (instance.directory / "death").unlink(missing_ok=True)
        found = image.ensure(context.cache, context.release)
        with Vm(found, context.machine, instance.directory, patience=context.patience) as vm:
            context.start(vm, found)
            (instance.directory / "in-use").touch()
            instance.write_info(
                Info(
                    name=context.name,
                    release=context.release.name,
                    xen=context.release.xen,
                    accelerator=context.machine.accelerator,
                    store=context.machine.store,
                    pid=os.getpid(),
                    qemu_pid=vm.pid,
                    port=vm.port,
                    started=time.time(),
                    idle_seconds=idle,
                    init=context.machine.init,
                    cpus=context.machine.cpus,
                    memory=context.machine.memory,
                    patience=context.patience,
                )
            )
            while True:
                time.sleep(POLL)
                if vm.death is not None:
                    raise vm.death
                if time.time() - instance.last_used() > idle:
                    print(f"xenvm: nobody used it for {idle:.0f} s", file=sys.stderr)
                    return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
