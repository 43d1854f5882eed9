# SPDX-License-Identifier: MIT
"""What Xen prints of its grants, taken apart; and what `xenpy grant` shows of pages."""

from __future__ import annotations

import pytest

from xenpy.cli.grant_pages import dump
from xenpy.grant_dump import Held, parse
from xenpy.types import DomId, GrantRef

RING = """\
(XEN) something else
(XEN) [0x001]      0 0x000001 0x00000001          0 0x000001 0x19
(XEN) gnttab_usage_print_all [ key 'g' pressed
(XEN)       -------- active --------       -------- shared --------
(XEN) [ref] localdom mfn      pin          localdom gmfn     flags
(XEN) grant-table for remote d0 (v1)
(XEN)   2 frames (64 max), 0 maptrack frames (1024 max)
(XEN) no active grant table entries
(XEN)       -------- active --------       -------- shared --------
(XEN) [ref] localdom mfn      pin          localdom gmfn     flags
(XEN) grant-table for remote d7 (v1)
(XEN)   1 frames (64 max), 0 maptrack frames (0 max)
(XEN) [0x008]      0 0x0a1b2c 0x00000101          0 0x00beef 0x19
(XEN) [0x3fa]      5 0x0a1b2d 0x02030405          5 0x00bef0 0x1d
(XEN) gnttab_usage_print_all ] done
"""


def test_each_grant_that_is_held() -> None:
    assert parse(RING) == [
        Held(DomId(7), GrantRef(8), DomId(0), 0xA1B2C, 1, 1),
        Held(DomId(7), GrantRef(0x3FA), DomId(5), 0xA1B2D, 5, 4),
    ]


@pytest.mark.parametrize(
    "forged",
    [
        "(d7) grant-table for remote d3 (v1)",
        "(d7) (XEN) grant-table for remote d3 (v1)",
        "(d7) gnttab_usage_print_all [ key 'g' pressed",
        "(d7) [0x009]      3 0x0a1b2c 0x00000101          3 0x00beef 0x19",
        "grant-table for remote d3 (v1)",
    ],
)
def test_a_guest_s_words_are_no_part_of_it(forged: str) -> None:
    honest = "(XEN)   1 frames (64 max), 0 maptrack frames (0 max)\n"
    assert parse(RING.replace(honest, f"{honest}{forged}\n")) == parse(RING)
    end = "(d7) gnttab_usage_print_all [ key 'g' pressed\n(d7) gnttab_usage_print_all ] done\n"
    assert parse(RING + end) == parse(RING)


def test_each_line_may_have_a_time() -> None:
    timed = RING.replace("(XEN) ", "(XEN) [2026-11-26 20:00:00.123] ")
    assert parse(timed) == parse(RING)


def test_the_last_list_counts() -> None:
    empty = "(XEN) gnttab_usage_print_all [ key 'g' pressed\n(XEN) gnttab_usage_print_all ] done\n"
    assert parse(RING + empty) == []


@pytest.mark.parametrize(
    ("ring", "why"),
    [("(XEN) nothing", "printed no list"), (RING[300:], "conring_size")],
)
def test_no_list_or_half_of_one(ring: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(ring)


def test_pages_are_shown_as_hexdump_does() -> None:
    content = b"hello, world\n\x00\xff~" + bytes(48) + b"end"
    assert dump(content).splitlines() == [
        "00000000  68 65 6c 6c 6f 2c 20 77 6f 72 6c 64 0a 00 ff 7e  |hello, world...~|",
        "00000010  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  |................|",
        "*",
        "00000040  65 6e 64                                         |end|",
        "00000043",
    ]
    assert dump(b"") == "00000000\n"
