# SPDX-License-Identifier: MIT
"""The tests of one module in one machine: their reports told, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import pytest

from xenpy.testing.remote.order import Dom0, Event
from xenpy.testing.remote.replay import Replay
from xenpy.testing.remote.stream import Failure, Stream

__all__ = ["ModuleRun", "finish"]

NOT_THERE = (
    "this test was collected here, and not in dom0: its name, or its being there, depends on the "
    "machine"
)


def finish(session: pytest.Session, each: Replay) -> None:
    """End a test.  Raises what pytest's own loop does when it was the last: Failed, Interrupted."""
    each.finish()
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)


class ModuleRun:
    """Takes the events of one order."""

    def __init__(self, session: pytest.Session, dom0: Dom0, waiting: Sequence[Replay]) -> None:
        """`waiting`: the tests of the order, one at least."""
        self._session = session
        self._dom0 = dom0
        self._all = {each.item.nodeid: each for each in waiting}
        self._waiting = dict(self._all)
        self._last = waiting[0]
        self._collected = False
        self._errors: list[str] = []
        self._status = 0
        self._stop = ""

    def run(self, stream: Stream) -> list[Replay]:
        """Returns the tests that were not reached, through no fault of theirs: fewer than before.

        Raises pytest.Session.Failed or Interrupted.
        """
        failure = None
        try:
            for event in stream.events():
                self._take(event)
        except Failure as error:
            failure = error
        if self._stop:
            raise self._session.Interrupted(self._stop)
        return self._settle(failure)

    def _take(self, event: Event) -> None:
        data = event.data
        match event.kind:
            case "collected":
                self._collected = not self._errors
                if self._collected:
                    self._drop_missing(cast(list[str], data["nodeids"]))
            case "error":
                self._errors.append(str(data["text"]))
            case "stop":
                self._stop = str(data["reason"])
            case "end":
                self._status = int(str(data["status"]))
            case "warning":
                # They come after the test has finished.
                if each := self._all.get(event.nodeid):
                    each.warn(data)
            case _:
                if each := self._waiting.get(event.nodeid):
                    self._last = each
                    self._take_of_test(each, event)

    def _take_of_test(self, each: Replay, event: Event) -> None:
        match event.kind:
            case "start":
                each.start()
            case "report":
                report = cast(Mapping[str, object], event.data["report"])
                failed = report.get("outcome") == "failed"
                each.report(report, self._dom0.console() if failed else "")
            case _:
                self._finish(each)

    def _finish(self, each: Replay) -> None:
        del self._waiting[each.item.nodeid]
        finish(self._session, each)

    def _drop_missing(self, nodeids: list[str]) -> None:
        for each in [each for nodeid, each in self._waiting.items() if nodeid not in nodeids]:
            each.fail(NOT_THERE, "setup", [])
            self._finish(each)

    def _settle(self, failure: Failure | None) -> list[Replay]:
        """Fail those whom the end has hit; returns the others."""
        rest = list(self._waiting.values())
        if not rest and failure is None and not self._errors:
            return []
        if failure is not None:
            why = str(failure) + "".join(f"\n  | {line}" for line in failure.details.splitlines())
        else:
            why = "\n".join(self._errors) or f"pytest in dom0 ended with status {self._status}"
        sections = self._dom0.last_words(alive=failure is None or failure.alive)
        if not rest:
            self._last.fail(f"after the last test: {why}", "teardown", sections)
            return []
        if self._collected:
            victim = next((each for each in rest if each.started), rest[0])
            when = "while this test ran" if victim.started else "before this test began"
            victim.fail(f"{when}: {why}", "call", sections)
            self._finish(victim)
            return [each for each in rest if each is not victim]
        for each in rest:
            each.fail(why, "setup", sections)
            self._finish(each)
        return []
