# SPDX-License-Identifier: MIT
"""The page of a console, struct xencons_interface of io/console.h, seen from either end.

Two byte rings: `out` is what the guest prints, `in` what is typed to it.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Self

from xenpy.memory import Memory
from xenpy.ring import StreamIn, StreamOut
from xenpy.shared_byte import SharedByte
from xenpy.types import GrantRef

__all__ = ["IN_SIZE", "OUT_SIZE", "RESERVED_CONSOLE", "ConsoleRing"]

IN_SIZE: Final = 1024
OUT_SIZE: Final = 2048
IN_CONS: Final = IN_SIZE + OUT_SIZE
IN_PROD: Final = IN_CONS + 4
OUT_CONS: Final = IN_CONS + 8
OUT_PROD: Final = IN_CONS + 12
CONNECTION: Final = IN_CONS + 16
CONNECTED: Final = 0
"""XENCONSOLE_CONNECTED, since Xen 4.21; before, nobody looks there."""

RESERVED_CONSOLE: Final = GrantRef(0)
"""Under which the toolstack grants the page of a guest's first console to domain 0
(GNTTAB_RESERVED_CONSOLE of grant_table.h)."""


class ConsoleRing(NamedTuple):
    """One end of a console's page.  It goes on from where the indices stand, so that whoever
    takes a console over loses nothing that the one before has left in the rings.

    Attributes:
        taken: what the other end writes.
        put: what this end writes.
    """

    taken: StreamIn
    put: StreamOut

    @classmethod
    def backend(cls, memory: Memory) -> Self:
        """The end that reads what the guest prints.  Says that it is there."""
        SharedByte(memory, CONNECTION).put(CONNECTED)
        return cls(
            StreamIn(memory, data=IN_SIZE, size=OUT_SIZE, cons=OUT_CONS, prod=OUT_PROD),
            StreamOut(memory, data=0, size=IN_SIZE, prod=IN_PROD, cons=IN_CONS),
        )

    @classmethod
    def frontend(cls, memory: Memory) -> Self:
        """The guest's end."""
        return cls(
            StreamIn(memory, data=0, size=IN_SIZE, cons=IN_CONS, prod=IN_PROD),
            StreamOut(memory, data=IN_SIZE, size=OUT_SIZE, prod=OUT_PROD, cons=OUT_CONS),
        )
