# SPDX-License-Identifier: MIT
"""What a backend did not look at, told at the end."""

from __future__ import annotations

import re
from typing import NamedTuple

from fences import ROOT
from xenpy.suggest import MOST, Suggestions


class Request(NamedTuple):
    id: int
    operation: int


class Plain(NamedTuple):
    id: int


def test_what_the_page_shows() -> None:
    suggestions = Suggestions()
    keys = suggestions.watched({"ring-ref": "8", "feature-dim": "1", "speed": "9", "state": "3"})
    assert keys.get("speed") == "9"
    suggestions.unhandled(Request(5, 3))
    suggestions.unhandled(Request(6, 3))
    page = (ROOT / "docs/howto/own-protocol.md").read_text()
    assert f"```text\n{suggestions}\n```" in page


def test_values_of_every_kind_and_requests_without_a_kind() -> None:
    suggestions = Suggestions()
    suggestions.watched({"name": "a lamp", "speed": "42"})
    suggestions.unhandled(Plain(1))
    assert str(suggestions).splitlines()[1:] == [
        "    name = 'a lamp'      self.frontend.get('name')",
        "    speed = '42'          number(self.frontend, 'speed')",
        "requests that nobody handled:",
        "    1 times, first Plain(id=1)",
        "        ...",
    ]


def test_nothing() -> None:
    suggestions = Suggestions()
    assert len(suggestions.watched({"ring-ref": "8"})) == 1
    assert re.match("nothing", str(suggestions))


def test_a_peer_cannot_fill_the_memory() -> None:
    suggestions = Suggestions()
    suggestions.watched({f"key{number}": "x" * 4096 for number in range(1000)})
    for number in range(1000):
        suggestions.unhandled(Request(1, number))
    assert len(str(suggestions)) < 300 * MOST
