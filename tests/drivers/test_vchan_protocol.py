# SPDX-License-Identifier: MIT
"""The layout of vchan's page: against the C header, and against any bytes a server may write."""

from __future__ import annotations

import random
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiling import compile_c
from conformance.vchan_raw import FIELDS, GRANTS
from xenpy.drivers.vchan.protocol import (
    CLIENT,
    GRANTS_OFFSET,
    MAX_ORDER,
    MAX_SIZE,
    MIN_ORDER,
    NOTIFY_READ,
    NOTIFY_WRITE,
    ORDERS_OFFSET,
    SERVER,
    Keys,
    Layout,
    Live,
    parse_page,
)
from xenpy.errors import PeerError
from xenpy.types import PAGE_SIZE, GrantRef, Port

orders = st.integers(0, 65535) | st.integers(MIN_ORDER - 1, MAX_ORDER + 1)
sizes = st.integers(0, MAX_SIZE)


def libxenvchan_orders(left_min: int, right_min: int) -> tuple[int, int]:
    """What libxenvchan_server_init would choose, from its documentation: the smallest order of
    12 and more that holds it; but if both fit into the page, there; and one, if it fits in 2048."""
    small, large = 1024, 2048
    if left_min <= small and right_min <= large:
        return 10, 11
    if left_min <= large and right_min <= small:
        return 11, 10

    def own_pages(least: int) -> int:
        return next(order for order in range(12, 21) if least <= 1 << order)

    if left_min <= large:
        return 11, own_pages(right_min)
    if right_min <= large:
        return own_pages(left_min), 11
    return own_pages(left_min), own_pages(right_min)


@given(sizes, sizes)
def test_rings_are_placed_as_libxenvchan_places_them(left: int, right: int) -> None:
    layout = Layout.of_sizes(left, right)
    assert (layout.left.order, layout.right.order) == libxenvchan_orders(left, right)
    assert layout.left.size >= left
    assert layout.right.size >= right


@pytest.mark.parametrize("size", [-1, MAX_SIZE + 1, 2**32])
def test_a_size_out_of_range(size: int) -> None:
    for pair in ((size, 1024), (1024, size)):
        with pytest.raises(ValueError, match=f"of {size} bytes"):
            Layout.of_sizes(*pair)


@given(orders, orders, st.integers(0, 2**32))
def test_any_page_is_refused_or_its_parts_lie_apart(left: int, right: int, seed: int) -> None:
    page = bytearray(random.Random(seed).randbytes(PAGE_SIZE))
    struct.pack_into("<HH", page, ORDERS_OFFSET, left, right)
    try:
        layout, lefts, rights = parse_page(bytes(page))
    except PeerError:
        return
    used = [(0, GRANTS_OFFSET + 4 * (len(lefts) + len(rights)))]
    for ring, refs in ((layout.left, lefts), (layout.right, rights)):
        assert MIN_ORDER <= ring.order <= MAX_ORDER
        assert len(refs) * PAGE_SIZE == (ring.size if refs else 0)
        if not refs:
            used.append((ring.offset, ring.offset + ring.size))
    used.sort()
    assert all(before[1] <= after[0] for before, after in pairwise(used))
    assert used[-1][1] <= PAGE_SIZE
    first = struct.unpack_from(f"<{len(lefts)}I", page, GRANTS_OFFSET)
    assert tuple(lefts) == first, "left comes first"


@given(st.integers(0, 20), st.integers(0, 20))
def test_what_libxenvchan_may_have_made_is_taken(left: int, right: int) -> None:
    layout = Layout.of_sizes(min(1 << left, MAX_SIZE), min(1 << right, MAX_SIZE))
    refs = [GrantRef(number) for number in range(8, 8 + layout.nr_grants)]
    packed = layout.pack(refs)
    page = bytes(ORDERS_OFFSET) + packed + bytes(PAGE_SIZE - ORDERS_OFFSET - len(packed))
    again, lefts, rights = parse_page(page)
    assert (again, lefts + rights) == (layout, refs)
    assert len(lefts) == layout.left.pages
    assert page[20:24] == bytes([Live.NOT_YET, Live.HERE, NOTIFY_WRITE, 0])


@given(st.dictionaries(st.sampled_from(["ring-ref", "event-channel", "other"]), st.text()))
def test_any_keys(keys: dict[str, str]) -> None:
    try:
        parsed = Keys.parse(keys)
    except PeerError:
        return
    shown = {name: str(value) for name, value in parsed.items().items()}
    assert shown == {name: keys[name] for name in ("ring-ref", "event-channel")}


def test_keys_of_a_server() -> None:
    keys = Keys.parse({"ring-ref": "8", "event-channel": "4294967295"})
    assert keys == Keys(GrantRef(8), Port(4294967295))


SOURCE = """
#include <stddef.h>
#include <stdio.h>
#include <xen/io/libxenvchan.h>
#define SHOW(name, field) \\
    printf("%s %zu %zu\\n", name, offsetof(struct vchan_interface, field), \\
           sizeof(((struct vchan_interface *)0)->field))
int main(void)
{
    SHOW("left.cons", left.cons); SHOW("left.prod", left.prod);
    SHOW("right.cons", right.cons); SHOW("right.prod", right.prod);
    SHOW("left_order", left_order); SHOW("right_order", right_order);
    SHOW("cli_live", cli_live); SHOW("srv_live", srv_live);
    SHOW("cli_notify", cli_notify); SHOW("srv_notify", srv_notify);
    printf("grants %zu 4\\n", offsetof(struct vchan_interface, grants));
    printf("VCHAN_NOTIFY_WRITE %d 0\\nVCHAN_NOTIFY_READ %d 0\\n",
           VCHAN_NOTIFY_WRITE, VCHAN_NOTIFY_READ);
    return 0;
}
"""


def test_the_page_is_the_header_s(tmp_path: Path) -> None:
    source = tmp_path / "page.c"
    source.write_text(SOURCE)
    program = compile_c(source, tmp_path / "page")
    shown = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    said = {
        name: (int(offset), int(size))
        for name, offset, size in (line.split() for line in shown.splitlines())
    }
    assert said.pop("VCHAN_NOTIFY_WRITE") == (NOTIFY_WRITE, 0)
    assert said.pop("VCHAN_NOTIFY_READ") == (NOTIFY_READ, 0)
    assert said.pop("grants") == (GRANTS_OFFSET, 4) == (GRANTS, 4)
    assert said == {
        name: (offset, struct.calcsize(form)) for name, (offset, form) in FIELDS.items()
    }
    offsets = {name: offset for name, (offset, _) in said.items()}
    assert offsets["left_order"] == ORDERS_OFFSET
    for side, own, other, read, written in (
        (SERVER, "srv", "cli", "left", "right"),
        (CLIENT, "cli", "srv", "right", "left"),
    ):
        # cli_notify is what the client looks at, and the server asks in.
        assert side.live == offsets[f"{own}_live"]
        assert side.peer_live == offsets[f"{other}_live"]
        assert side.wanted == offsets[f"{other}_notify"]
        assert side.asked == offsets[f"{own}_notify"]
        assert (side.read, side.read + 4) == (offsets[f"{read}.cons"], offsets[f"{read}.prod"])
        assert side.written == offsets[f"{written}.cons"]
