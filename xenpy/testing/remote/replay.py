# SPDX-License-Identifier: MIT
"""Reports of dom0's pytest, given to the plugins of the pytest here as if they were its own."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Literal, cast

import pytest

from xenpy.testing.remote.logs import tail
from xenpy.testing.remote.order import Section

__all__ = ["Replay", "named", "with_tuples"]

When = Literal["setup", "call", "teardown"]


class Replay:
    """The life of one test, told again.

    `where` becomes a part of its name, as if it were a parameter.
    """

    def __init__(self, item: pytest.Item, where: str = "") -> None:
        self.item = item
        self.nodeid = named(item.nodeid, where) if where else item.nodeid
        self.started = False

    def start(self) -> None:
        """Once."""
        if not self.started:
            self.started = True
            self.item.ihook.pytest_runtest_logstart(nodeid=self.nodeid, location=self.item.location)

    def finish(self) -> None:
        """It will not be heard of again."""
        self.item.ihook.pytest_runtest_logfinish(nodeid=self.nodeid, location=self.item.location)

    def report(self, data: Mapping[str, object], console: str) -> None:
        """Tell one of its reports; `console` goes with a failure."""
        config = self.item.config
        report = cast(
            pytest.TestReport,
            config.hook.pytest_report_from_serializable(config=config, data=with_tuples(data)),
        )
        report.nodeid = self.nodeid
        if report.failed and console.strip():
            report.sections.append(("dom0's console, since its module began", tail(console)))
        self.item.ihook.pytest_runtest_logreport(report=report)

    def fail(self, why: str, when: When, sections: list[Section]) -> None:
        """Report what no pytest could: that there is none any more."""
        self.start()
        report = pytest.TestReport(
            self.nodeid, self.item.location, dict.fromkeys(self.item.keywords, 1),
            "failed", why, when, sections,
        )  # fmt: skip
        self.item.ihook.pytest_runtest_logreport(report=report)

    def warn(self, data: Mapping[str, object]) -> None:
        """Tell a warning."""
        text, lineno = str(data["text"]), int(str(data["lineno"]))
        found = _category(data["category"])
        message = warnings.WarningMessage(text, found, str(data["filename"]), lineno)
        self.item.config.hook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": message, "nodeid": self.nodeid, "when": "runtest",
                "location": None,
            }
        )  # fmt: skip


def with_tuples(data: Mapping[str, object]) -> dict[str, object]:
    """A report whose tuples are such again: JSON has made lists of them."""
    changed = dict(data)
    for name in ("location", "longrepr"):
        if isinstance(value := data.get(name), list):
            changed[name] = tuple(cast(list[object], value))
    for name in ("sections", "user_properties"):
        if isinstance(value := data.get(name), list):
            changed[name] = [tuple(pair) for pair in cast(list[list[object]], value)]
    return changed


def named(nodeid: str, where: str) -> str:
    """The name of a test with one parameter more."""
    return f"{nodeid[:-1]}-{where}]" if nodeid.endswith("]") else f"{nodeid}[{where}]"


def _category(name: object) -> type[Warning]:
    """The class of that name, if it is loaded here too."""
    module, attribute = cast(list[str], name)
    found = getattr(sys.modules.get(module), attribute, None)
    return found if isinstance(found, type) and issubclass(found, Warning) else UserWarning
