# SPDX-License-Identifier: MIT
"""The part of a test session that happens in machines: one for each module, one after another.

A machine that dies, or in which nothing happens for too long, costs the test that ran; those of
its module that are left run in another.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import groupby

import pytest

from xenpy.testing.remote.module import ModuleRun, finish
from xenpy.testing.remote.order import Dom0Maker, Order
from xenpy.testing.remote.replay import Replay
from xenpy.testing.remote.stream import Stream
from xenpy.vm.errors import VmError

__all__ = ["XenSession", "by_module"]


def by_module(items: Iterable[pytest.Item]) -> list[list[pytest.Item]]:
    """The tests of each module together, modules in the order in which their first tests come."""
    places: dict[str, int] = {}

    def place(item: pytest.Item) -> int:
        return places.setdefault(item.nodeid.partition("::")[0], len(places))

    return [list(group) for _, group in groupby(sorted(items, key=place), key=place)]


class XenSession:
    """Runs tests, and has their reports told."""

    def __init__(
        self, session: pytest.Session, make: Dom0Maker,
        order_of: Callable[[Sequence[pytest.Item]], Order], *, patience: float,
        visible: Callable[[], AbstractContextManager[object]],
    ) -> None:  # fmt: skip
        """
        Args:
            order_of: what to ask for, given the tests.
            patience: seconds without a sign of dom0's pytest that end a machine.
            visible: what is printed within it reaches the terminal.
        """
        self._session = session
        self._make = make
        self._order_of = order_of
        self._patience = patience
        self._visible = visible
        self._no_xen: dict[str, str] = {}

    def run(self, items: Sequence[pytest.Item], releases: Sequence[str]) -> None:
        """Run them on each release.

        Raises pytest.Session.Failed or Interrupted, as pytest's own loop does.
        """
        self._session.testscollected += len(items) * (len(releases) - 1)
        for release in releases:
            where = release if len(releases) > 1 else ""
            for module in by_module(items):
                waiting = [Replay(item, where) for item in module]
                while waiting:
                    waiting = self._in_a_machine(release, waiting)

    def _in_a_machine(self, release: str, waiting: list[Replay]) -> list[Replay]:
        """Run what one machine lasts for; returns what is left."""
        with ExitStack() as stack:
            why = self._no_xen.get(release, "")
            if not why:
                try:
                    with self._visible():
                        dom0 = stack.enter_context(self._make(release))
                except (VmError, OSError, subprocess.SubprocessError) as error:
                    why = error.render() if isinstance(error, VmError) else repr(error)
                    # The next module's would fail like it, and perhaps after as long.
                    self._no_xen[release] = f"no Xen of {release}, as above: {error}"
                else:
                    order = self._order_of([each.item for each in waiting])
                    stream = stack.enter_context(Stream(dom0, order, self._patience))
                    return ModuleRun(self._session, dom0, waiting).run(stream)
        for each in waiting:
            each.fail(why, "setup", [])
            finish(self._session, each)
        return []
