# SPDX-License-Identifier: MIT
"""The pytest in dom0: runs the tests of an order, and tells what comes of them.

    python3 -m xenpy.testing.remote.dom0 [FILE] < ORDER > EVENTS

What the tests print past pytest goes into FILE, or to standard error.  A daemon that a test leaves
behind then holds that file, and not the connection of ssh.

It knows no more than what dom0 has: Debian's pytest, 7.2 or later.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import TextIO

import pytest

from xenpy.testing.remote.logs import Logs
from xenpy.testing.remote.order import Event, Order

__all__ = ["Recorder", "main"]


class Recorder:
    """A plugin: chooses the tests of the order, and writes down what happens."""

    def __init__(self, order: Order, events: TextIO, logs: Logs) -> None:
        self.order = order
        self.events = events
        self.logs = logs
        self._pid = os.getpid()

    def send(self, kind: str, nodeid: str = "", **data: object) -> None:
        """Write an event.  A child that a test forked says nothing here."""
        if os.getpid() == self._pid:
            self.events.write(Event(kind, nodeid, data).to_line())
            self.events.flush()

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        known = vars(config.option)
        known.update({name: value for name, value in self.order.options.items() if name in known})

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        places = {nodeid: place for place, nodeid in enumerate(self.order.nodeids)}
        items[:] = sorted(
            (item for item in items if item.nodeid in places), key=lambda item: places[item.nodeid]
        )
        self.send("collected", nodeids=[item.nodeid for item in items])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.send("error", text=f"collecting {report.nodeid or '.'}:\n{report.longreprtext}")

    def pytest_internalerror(self, excrepr: object) -> None:
        self.send("error", text=f"an internal error of pytest:\n{excrepr}")

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        if isinstance(excinfo.value, pytest.exit.Exception):
            self.send("stop", reason=str(excinfo.value))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.shouldstop:
            self.send("stop", reason=str(session.shouldstop))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.logs.mark()
        self.send("start", nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            report.sections += self.logs.since()
        data: dict[str, object] = self.config.hook.pytest_report_to_serializable(
            config=self.config, report=report
        )
        self.send("report", report.nodeid, report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.send("finish", nodeid)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str
    ) -> None:
        # Those of the collection are the host's, which collects the same.
        if when == "runtest":
            category = warning_message.category
            self.send(
                "warning", nodeid, text=str(warning_message.message),
                category=[category.__module__, category.__qualname__],
                filename=warning_message.filename, lineno=warning_message.lineno,
            )  # fmt: skip

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.config = session.config


def main() -> int:
    """Run what standard input asks for.  Returns pytest's exit status."""
    said = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o644) if sys.argv[1:] else 2
    order = Order.from_json(sys.stdin.read())
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # `-m` has put the working directory there, which the pytest of the host may not have done.
    del sys.path[0]
    logs = Logs()
    recorder = Recorder(order, events, logs)
    status = int(pytest.main(order.arguments, plugins=[recorder]))
    recorder.send("end", status=status)
    logs.close()
    return status


if __name__ == "__main__":
    sys.exit(main())
