# SPDX-License-Identifier: MIT
"""Who holds which grant, out of what Xen prints for the debug key `g`.  Pure.

The only list that there is: gnttab_usage_print of Xen's common/grant_table.c, which names each
grant that is mapped, or being copied, with the domain that does so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from xenpy.types import DomId, GrantRef

__all__ = ["Held", "parse"]

XENS: Final = re.compile(r"\(XEN\) (?:\[(?!0x)[^]]*\] )?(?P<said>.*)")
"""A line of the hypervisor's own.  Guests' are in the ring as well, with (d7) in front, and may say
anything; a time stands in brackets if Xen was booted with console_timestamps."""
BEGIN: Final = "gnttab_usage_print_all [ key 'g' pressed"
END: Final = "gnttab_usage_print_all ] done"
TABLE: Final = re.compile(r"grant-table for remote d(\d+)")
ENTRY: Final = re.compile(
    r"\[0x([0-9a-f]+)\]\s+(\d+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]{8})\s+(\d+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)"
)
PIN_BITS: Final = 8
"""Of each count in `pin`, from bit 0 on: mappings by the host for writing and for reading, by
devices for writing and for reading (GNTPIN_hstw_shift and the others of common/grant_table.c)."""


@dataclass(frozen=True)
class Held:
    """A grant that somebody uses.

    Attributes:
        domid: who granted.
        holder: who has mapped it, or copies.
        frame: the machine's.
        writers, readers: how many mappings there are, for writing and for reading.  That of a
            program counts twice in a PV domain, since Linux's gntdev maps it for the kernel too.
    """

    domid: DomId
    ref: GrantRef
    holder: DomId
    frame: int
    writers: int
    readers: int


def parse(ring: str) -> list[Held]:
    """The last dump in Xen's console.

    Raises:
        ValueError: there is none, or only its end: the ring is too small.
    """
    lines = [found["said"].strip() for line in ring.splitlines() if (found := XENS.match(line))]
    if END not in lines:
        raise ValueError("Xen has printed no list of grants")
    end = len(lines) - 1 - lines[::-1].index(END)
    if BEGIN not in lines[:end]:
        raise ValueError("the list of grants does not fit into Xen's console ring: conring_size=")
    begin = end - 1 - lines[:end][::-1].index(BEGIN)
    return list(_held(lines[begin + 1 : end]))


def _held(lines: Sequence[str]) -> Iterator[Held]:
    owner: DomId | None = None
    for line in lines:
        if table := TABLE.match(line):
            owner = DomId(int(table[1]))
        elif (entry := ENTRY.match(line)) and owner is not None:
            ref, holder, frame, pin = int(entry[1], 16), int(entry[2]), entry[3], int(entry[4], 16)
            counts = [pin >> PIN_BITS * number & 0xFF for number in range(4)]
            yield Held(
                owner, GrantRef(ref), DomId(holder), int(frame, 16),
                max(counts[0], counts[2]), max(counts[1], counts[3]),
            )  # fmt: skip
