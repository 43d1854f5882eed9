# SPDX-License-Identifier: MIT
"""What the host asks of the pytest in dom0, and what that one tells: JSON, both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Protocol

__all__ = ["Dom0", "Dom0Maker", "Event", "Order", "Section"]

Section = tuple[str, str]
"""A title and a text, as pytest's reports have them."""


@dataclass(frozen=True)
class Order:
    """Some tests of one module.

    Attributes:
        directory: where pytest runs; what it prints is relative to that.
        path: directories of modules, which come before xenpy's own.
        arguments: pytest's command line.
        options: those of pytest's options that have no word there, by their names in
            `config.option`; a name that dom0's pytest does not have means nothing to it.
        nodeids: the tests, in their order.
        live: what the tests print is to be seen as it comes (`pytest -s`).
    """

    directory: str
    path: list[str]
    arguments: list[str]
    options: dict[str, object]
    nodeids: list[str]
    live: bool

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        """The order in `text`, which `to_json` made."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Event:
    """One thing that happened in dom0.

    Attributes:
        kind: `collected`, with the `nodeids` that were found; `error`, with the `text` of one
            that is no test's; `start` and `finish` of a test; `report`, with pytest's own
            serialisation of it; `warning`; `stop`, with the reason why a test ended the whole
            run; and `end`, with pytest's exit status.
        nodeid: the test's, "" where there is none.
    """

    kind: str
    nodeid: str = ""
    data: Mapping[str, object] = field(default_factory=dict[str, object])

    def to_line(self) -> str:
        """One line, with its end.  What JSON cannot say is said by its `str`."""
        return json.dumps([self.kind, self.nodeid, self.data], default=str) + "\n"

    @classmethod
    def from_line(cls, line: bytes) -> Event | None:
        """The event; None for a line that is none, as when its writer died in the middle of it."""
        try:
            kind, nodeid, data = json.loads(line)
        except ValueError:
            return None
        return cls(kind, nodeid, data)


class Dom0(Protocol):
    """A pristine Xen with the project in its dom0, for the tests of one module."""

    def run(self, order: Order, events: int) -> int:
        """Carry out the order; events are written to the descriptor, a line each.

        If the order says `live`, what else comes out goes to our standard error.  Called in a
        thread of its own.  Returns the exit status, 128 + N after signal N.  Raises VmError: the
        machine died.
        """
        ...

    def console(self) -> str:
        """All that the machine's serial console has said: Xen's words and its kernel's."""
        ...

    def last_words(self, *, alive: bool) -> list[Section]:
        """What tells why pytest has died or hangs; `alive`: dom0 may still be asked."""
        ...


class Dom0Maker(Protocol):
    """Makes one; leaving it ends the machine."""

    def __call__(self, release: str) -> AbstractContextManager[Dom0]:
        """Raises VmError: there is no machine to be had."""
        ...
