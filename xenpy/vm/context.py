# SPDX-License-Identifier: MIT
"""What every verb starts from: the cache, the release, the machine, and how to get one.

`Context.fresh` gives a pristine Xen that dies with the block; `Context.instance` the one
that `xenvm up` started.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xenpy.vm import build, host, image, progress, warm
from xenpy.vm.cache import Cache
from xenpy.vm.checkout import Checkout
from xenpy.vm.errors import VmError
from xenpy.vm.image import Image
from xenpy.vm.instance import Instance
from xenpy.vm.machine import DEFAULT_PATIENCE, Vm, make_overlay, scratch_directory
from xenpy.vm.pushed import NOTHING, Pushed
from xenpy.vm.qemu import Machine, Sockets, command_line
from xenpy.vm.releases import DEFAULT, Release, release
from xenpy.vm.session import Session
from xenpy.vm.ssh import Keys, Link

__all__ = ["Context"]


@dataclass
class Context:
    """The settings of one command.

    Attributes:
        release_name: None where the user named none.
        name: the instance of `up`.
        patience: seconds without a heartbeat until the watchdog bites.
        save_console: where to keep the console of the machine.
        asked: the fields of an `Info`, but for the release, that the user named: an instance
            of `up` where they differ will not do.
        package_only: a pristine machine gets xenpy without its tests and documentation.
    """

    cache: Cache = field(default_factory=Cache)
    release_name: str | None = None
    name: str = "default"
    machine: Machine = field(default_factory=Machine)
    patience: float = DEFAULT_PATIENCE
    save_console: Path | None = None
    asked: Mapping[str, Any] = field(default_factory=dict[str, Any])
    cold: bool = False
    package_only: bool = False

    @property
    def release(self) -> Release:
        """The release asked for, or the default."""
        return release(self.release_name or DEFAULT)

    def with_release(self, name: str) -> Context:
        """The same settings for another release."""
        return replace(self, release_name=name)

    def prepare(self) -> Image:
        """Install what is missing on the host, choose the accelerator, build the image."""
        host.ensure_packages(host.VM_PACKAGES)
        if not self.machine.icount:
            accelerator, why = host.accelerator()
            self.machine = replace(self.machine, accelerator=accelerator)
            if accelerator == "kvm" or self._is_first_use():
                progress.note(f"accelerator: {accelerator} ({why})")
        return image.ensure(self.cache, self.release)

    def _is_first_use(self) -> bool:
        return not (self.cache.root / "warm").is_dir()

    def qemu_command(self) -> list[str]:
        """The command line that would be run; nothing is built or started."""
        directory = Path("RUN")
        if not self.machine.icount:
            self.machine = replace(self.machine, accelerator=host.accelerator()[0])
        base = self.cache.root / "images" / f"{self.release.name}-KEY"
        return command_line(
            self.machine,
            xen=base / "xen",
            kernel=base / "vmlinuz",
            initrd=base / "initrd.img",
            disk=directory / "disk.qcow2",
            incoming=not self.cold,
        )

    @contextmanager
    def fresh(self) -> Generator[tuple[Vm, Session], None, None]:
        """A pristine Xen with the checkout in it, and a session in its dom0."""
        found = self.prepare()
        checkout = Checkout.scan()
        if self.package_only:
            checkout = checkout.package()
        with scratch_directory(self.cache) as directory:
            vm = Vm(found, self.machine, directory, patience=self.patience)
            try:
                with vm:
                    pushed = self.start(vm, found)
                    link = Link(Keys.ensure(self.cache), vm.port, directory)
                    with Session(link, vm.check, vm) as session:
                        built = build.ensure(self.cache, found, checkout)
                        session.push(checkout, built, pushed)
                        yield vm, session
            finally:
                self._keep_console(vm.console_log)

    def _keep_console(self, log: Path) -> None:
        if self.save_console is not None and log.exists():
            self.save_console.write_bytes(log.read_bytes())

    def start(self, vm: Vm, found: Image) -> Pushed:
        """Start `vm` from the warm snapshot (or cold, if that was asked for).  Returns what its
        dom0 has of xenpy."""
        disk = vm.directory / "disk.qcow2"
        if self.cold:
            make_overlay(found.root, "raw", disk)
            with progress.step(f"booting Xen {found.release.xen}"):
                vm.start(disk)
            return NOTHING
        snapshot = warm.ensure(self.cache, found, self.machine)
        make_overlay(snapshot.disk, "qcow2", disk)
        with progress.step(f"resuming Xen {found.release.xen}"):
            vm.start(disk, snapshot.state)
        return Pushed.load(snapshot.pushed)

    def running_instance(self) -> Instance | None:
        """The instance of `up` with our name, if it runs and is what was asked for."""
        instance = Instance(self.cache, self.name)
        if not instance.is_running():
            return None
        info = instance.info()
        if self.release_name not in (None, info.release):
            progress.note(
                f"instance {self.name!r} runs {info.release}; this gets a fresh {self.release_name}"
            )
            return None
        other = [name for name, value in self.asked.items() if getattr(info, name) != value]
        if other:
            has = _as_options({name: getattr(info, name) for name in other})
            wanted = _as_options({name: self.asked[name] for name in other})
            progress.note(
                f"instance {self.name!r} has {has}; this gets a fresh machine with {wanted}"
            )
            return None
        return instance

    @contextmanager
    def instance(self, *, push: bool = True) -> Generator[tuple[Instance, Session], None, None]:
        """The running instance, with the present checkout in it, and a session in its dom0."""
        instance = self.running_instance()
        if instance is None:
            raise VmError(
                f"no instance {self.name!r} is running",
                hint="start one with `xenvm up`, or use `xenvm exec --fresh -- CMD`",
            )
        with instance.in_use(), scratch_directory(self.cache) as directory:
            link = Link(Keys.ensure(self.cache), instance.info().port, directory)
            with Session(link, instance.check) as session:
                if push:
                    found = image.ensure(self.cache, release(instance.info().release))
                    checkout = Checkout.scan()
                    session.push(checkout, build.ensure(self.cache, found, checkout))
                yield instance, session

    @contextmanager
    def session(self, *, fresh: bool) -> Generator[Session, None, None]:
        """A session in the running instance, or else in a fresh machine."""
        alone = fresh or self.cold or self.machine.icount
        if not alone and self.running_instance() is not None:
            with self.instance() as (instance, session):
                try:
                    yield session
                finally:
                    self._keep_console(instance.directory / Sockets.CONSOLE_LOG)
        else:
            with self.fresh() as (_, session):
                yield session


def _as_options(fields: Mapping[str, Any]) -> str:
    names = {"patience": "watchdog"}
    return " ".join(f"--{names.get(name, name)} {value}" for name, value in fields.items())
