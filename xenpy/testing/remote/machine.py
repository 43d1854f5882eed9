# SPDX-License-Identifier: MIT
"""The nested VM as a place to run tests: a fresh one for each module, out of a warm snapshot."""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from xenpy.testing.remote.logs import LINES, tail
from xenpy.testing.remote.order import Dom0, Order, Section
from xenpy.testing.remote.project import CARRIED, Project
from xenpy.vm import console, progress
from xenpy.vm.context import Context
from xenpy.vm.errors import VmError
from xenpy.vm.machine import Vm
from xenpy.vm.session import Session

__all__ = ["NestedXen"]

SHOW_AFTER = 10.0
"""Seconds: that a machine is resumed, which takes some five, is no news."""
XENPY = "/root/xenpy"
TAKEN = 73
SAID = "/run/xenvm/pytest"
QUESTIONS = (
    ("pytest in dom0", f"tail -n {LINES} {SAID}"),
    ("dom0's kernel", "dmesg | tail -n 30"),
    ("the guests' consoles", f"tail -n {LINES} /var/log/xen/console/*.log"),
)


class NestedXen:
    """Makes machines, each with the project in its dom0."""

    def __init__(self, project: Project, *, icount: bool = False) -> None:
        self._project = project
        self._icount = icount
        progress.show_after(SHOW_AFTER)

    @contextmanager
    def __call__(self, release: str) -> Generator[Dom0, None, None]:
        context = Context(release_name=release, package_only=True)
        if self._icount:
            context.machine = context.machine.with_icount()
        with context.fresh() as (vm, session):
            self._push(vm, session)
            yield _Nested(vm, session)

    def _push(self, vm: Vm, session: Session) -> None:
        root = shlex.quote(os.fspath(self._project.root))
        # Only a project may lie there: its files must not become a part of the system's.
        free = f'[ -z "$(ls -A {root} 2> /dev/null)" ] || exit {TAKEN}'
        status = _unpack(vm, session, self._project.pack(), f"{free}; mkdir -p {root}", root)
        if status == TAKEN:
            raise VmError(
                f"the project lies in {root}, where dom0 has files of its own",
                hint="move it into a directory of its own",
            )
        if status == 0 and self._project.carry:
            status = _unpack(vm, session, self._project.pack_carried(), f"mkdir {CARRIED}", CARRIED)
        if status:
            raise VmError(f"cannot copy the project into dom0 (status {status})")


def _unpack(vm: Vm, session: Session, content: bytes, first: str, directory: str) -> int:
    path = vm.directory / "project.tar"
    path.write_bytes(content)
    with path.open("rb") as file:
        return session.run(f"{first}; tar -C {directory} -xf -", cwd="/", stdin=file)


class _Nested:
    """A `Dom0`."""

    def __init__(self, vm: Vm, session: Session) -> None:
        self._vm = vm
        self._session = session
        self._ssh = vm.directory / "pytest-said"

    def run(self, order: Order, events: int) -> int:
        path: Path = self._vm.directory / "order.json"
        path.write_text(order.to_json())
        command = ["python3", "-m", "xenpy.testing.remote.dom0", *([] if order.live else [SAID])]
        environment = {"PYTHONPATH": os.pathsep.join([*order.path, XENPY])}
        with path.open("rb") as file, self._ssh.open("ab") as said:
            return self._session.run(
                command, cwd=order.directory, env=environment, stdin=file, stdout=events,
                stderr=None if order.live else said,
            )  # fmt: skip

    def console(self) -> str:
        return console.clean(console.read_tail(self._vm.console_log, 1 << 30))

    def last_words(self, *, alive: bool) -> list[Section]:
        found = [("dom0's console, the end", console.last_lines(self._vm.console_log, LINES))]
        with suppress(OSError):
            found.append(("ssh", tail(self._ssh.read_text(errors="replace"))))
        for title, command in QUESTIONS if alive else ():
            with suppress(VmError):
                found.append((title, console.clean(self._session.output(command, timeout=30))))
        return [(title, text) for title, text in found if text.strip()]
