# SPDX-License-Identifier: MIT
"""Grants and event channels: one suite for the fake Xen and for a real one.

A module that runs it imports every name and defines a fixture `env`, a `HandlesEnvironment`.
After each test nothing may be left held.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import pytest

from conformance.handles_env import (
    HandlesEnvironment,
    arrived,
    forked,
    in_child,
    reap,
    wait_readable,
)
from xenpy.errors import StaleHandleError, XenError, XenExistsError, XenPermissionError
from xenpy.evtchn import READ_LIMIT, EventChannels
from xenpy.gnttab import CopySegment, GrantShare, GrantTable, SharedPages
from xenpy.handles import Handle, open_handles, refuse_if_open
from xenpy.memory import LocalMemory
from xenpy.types import DOM0, PAGE_SIZE, DomId, GrantRef, Port

GNTST_GENERAL_ERROR, GNTST_BAD_DOMAIN, GNTST_BAD_GNTREF = -1, -2, -3
"""grant_table.h."""
ABSURD_REF = GrantRef(0x7FFFFFFF)
ABSURD_PORT = Port(0xFFFFFFFF)
CLOSED_PORT = Port(1000)
"""Nobody's, and within what Linux has room for from the start (events_fifo.c: 1024)."""
VIRQ_DEBUG = 1
"""xen.h: free in every domain; it fires only when an operator asks for a dump."""
NR_VIRQS = 24


@pytest.fixture(autouse=True)
def nothing_left(env: HandlesEnvironment) -> Iterator[None]:
    gc.collect()
    before = env.census()
    yield
    gc.collect()
    assert env.census() == before, "something of the test is still held"


@pytest.fixture
def share(env: HandlesEnvironment) -> Iterator[GrantShare]:
    with env.open_share() as share:
        yield share


@pytest.fixture
def table(env: HandlesEnvironment) -> Iterator[GrantTable]:
    with env.back_xen().open_grants() as table:
        yield table


@pytest.fixture
def theirs(env: HandlesEnvironment) -> Iterator[EventChannels]:
    with env.open_channels() as channels:
        yield channels


@pytest.fixture
def ours(env: HandlesEnvironment) -> Iterator[EventChannels]:
    with env.back_xen().open_evtchn() as channels:
        yield channels


@pytest.fixture
def local() -> Iterator[LocalMemory]:
    with LocalMemory(4 * PAGE_SIZE) as memory:
        yield memory


def numbered(share: GrantShare, domid: DomId, count: int) -> SharedPages:
    """Pages whose first byte is their number."""
    pages = share.share(domid, count)
    with pages.view() as view:
        for number in range(count):
            view[number * PAGE_SIZE] = number
    return pages


# ------------------------------------------------------------------ mapping


def test_a_mapped_page_is_the_shared_one(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    pages = share.share(env.back_domid, 1)
    mapping = table.map(env.front_domid, pages.refs)
    assert (pages.size, mapping.size) == (PAGE_SIZE, PAGE_SIZE)
    assert pages.domid == env.back_domid
    assert mapping.pages == ((env.front_domid, pages.refs[0]),)
    with pages.view() as here, mapping.view() as there:
        assert bytes(there) == bytes(PAGE_SIZE), "shared pages begin zeroed"
        here[0:5] = b"hello"
        there[PAGE_SIZE - 3 :] = b"end"
        assert bytes(there[0:5]) == b"hello"
        assert bytes(here[PAGE_SIZE - 3 :]) == b"end"


def test_many_pages_are_mapped_in_the_order_of_their_references(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    pages = numbered(share, env.back_domid, 20)
    assert len(set(pages.refs)) == 20
    mapping = table.map(env.front_domid, pages.refs[::-1])
    with mapping.view() as view:
        assert [view[n * PAGE_SIZE] for n in range(20)] == list(range(20))[::-1]


def test_one_page_may_be_mapped_several_times(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    (ref,) = share.share(env.back_domid, 1).refs
    twice, again = table.map(env.front_domid, [ref, ref]), table.map(env.front_domid, [ref])
    with twice.view() as view, again.view() as other:
        view[7] = 99
        assert view[PAGE_SIZE + 7] == other[7] == 99
    twice.close()
    with again.view() as other:
        assert other[7] == 99, "one mapping ends without the other"


def test_grants_are_mapped_by_pairs_of_domain_and_reference(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    pages = numbered(share, env.back_domid, 3)
    pairs = [(env.front_domid, pages.refs[n]) for n in (2, 0, 1)]
    mapping = table.map_foreign(pairs, writable=False)
    assert mapping.pages == tuple(pairs)
    with mapping.view() as view:
        assert [view[n * PAGE_SIZE] for n in range(3)] == [2, 0, 1]


def test_a_read_only_mapping_is_read_only(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    pages = share.share(env.back_domid, 1)
    mapping = table.map(env.front_domid, pages.refs, writable=False)
    assert not mapping.writable
    with pages.view() as here, mapping.view() as there:
        here[0] = 1
        assert there.readonly
        assert there[0] == 1
        with pytest.raises(TypeError):
            there[0] = 2


def test_what_is_shared_read_only_is_mapped_read_only_or_not_at_all(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    pages = share.share(env.back_domid, 1, writable=False)
    with pages.view() as here:
        here[0] = 1
    with pytest.raises(XenError) as caught:
        table.map(env.front_domid, pages.refs)
    assert caught.value.errno == errno.EINVAL
    with table.map(env.front_domid, pages.refs, writable=False) as mapping:
        assert bytes(mapping.view(0, 1)) == b"\1"


def test_a_bad_reference_is_refused_and_named(env: HandlesEnvironment, table: GrantTable) -> None:
    with pytest.raises(XenError) as caught:
        table.map(env.front_domid, [ABSURD_REF])
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value) == (
        f"[EINVAL] map_grant_refs(domid={env.front_domid}, refs=[{ABSURD_REF}]): Invalid argument"
    )
    assert table.held == 0


@pytest.mark.parametrize("place", [0, 2, 4])
def test_of_a_batch_with_a_bad_reference_nothing_is_mapped(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable, place: int
) -> None:
    refs = list(share.share(env.back_domid, 4).refs)
    refs.insert(place, ABSURD_REF)
    with pytest.raises(XenError, match=r"refs=.*Invalid argument") as caught:
        table.map(env.front_domid, refs)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(XenError, match=r"pages=.*Invalid argument") as caught:
        table.map_foreign([(env.front_domid, ref) for ref in refs])
    assert caught.value.errno == errno.EINVAL
    assert table.held == 0


def test_what_is_shared_with_another_cannot_be_mapped(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    pages = share.share(env.stranger_domid, 1)
    with pytest.raises(XenError) as caught:
        table.map(env.front_domid, pages.refs)
    assert caught.value.errno == errno.EINVAL


def test_a_domain_that_is_not_there_has_nothing_to_map(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    pages = share.share(env.back_domid, 1)
    with pytest.raises(XenError, match=f"domid={env.stranger_domid}") as caught:
        table.map(env.stranger_domid, pages.refs)
    assert caught.value.errno == errno.EINVAL


def test_a_mapped_page_outlives_its_share(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    pages = share.share(env.back_domid, 1)
    with table.map(env.front_domid, pages.refs) as mapping:
        with pages.view() as here:
            here[0] = 5
        pages.close()
        assert share.held == 0
        assert bytes(mapping.view(0, 1)) == b"\5"


def test_an_empty_request_is_refused(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    with pytest.raises(ValueError, match="no page"):
        table.map(env.front_domid, [])
    with pytest.raises(ValueError, match="no page"):
        table.map_foreign([])
    for count in (0, -1):
        with pytest.raises(ValueError, match="pages"):
            share.share(env.back_domid, count)


def test_what_is_held_is_counted(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    pages, other = share.share(env.back_domid, 3), share.share(env.back_domid, 1)
    mapping = table.map(env.front_domid, pages.refs)
    assert (share.held, table.held) == (4, 3)
    assert "4 pages held" in repr(share)
    mapping.close()
    other.close()
    assert (share.held, table.held) == (3, 0)
    table.close()
    assert "closed" in repr(table)


# ------------------------------------------------------------------ notified when it goes


class Connected(NamedTuple):
    """A channel between the domains: the backend's port and the frontend's."""

    ours: Port
    theirs: Port


@pytest.fixture
def channel(env: HandlesEnvironment, ours: EventChannels, theirs: EventChannels) -> Connected:
    their_port = theirs.bind_unbound(env.back_domid)
    our_port = ours.bind_interdomain(env.front_domid, their_port)
    assert arrived(ours) == [our_port]
    ours.unmask([our_port])
    return Connected(our_port, their_port)


@pytest.mark.parametrize("offset", [0, 1000, PAGE_SIZE - 1])
def test_an_unmap_clears_a_byte_and_notifies(
    env: HandlesEnvironment,
    share: GrantShare,
    table: GrantTable,
    theirs: EventChannels,
    channel: Connected,
    offset: int,
) -> None:
    pages = share.share(env.back_domid, 1)
    with pages.view() as here:
        here[:] = b"\xff" * PAGE_SIZE
        mapping = table.map(
            env.front_domid, pages.refs, notify_offset=offset, notify_port=channel.ours
        )
        assert theirs.pending() == []
        assert here[offset] == 0xFF
        mapping.close()
        assert arrived(theirs) == [channel.theirs]
        assert [n for n, byte in enumerate(here) if byte == 0] == [offset]


def test_either_part_of_the_notification_may_be_left_out(
    env: HandlesEnvironment,
    share: GrantShare,
    table: GrantTable,
    theirs: EventChannels,
    channel: Connected,
) -> None:
    pages = share.share(env.back_domid, 1)
    with pages.view() as here:
        here[0:2] = b"\1\1"
        table.map(env.front_domid, pages.refs, notify_offset=0).close()
        assert bytes(here[0:2]) == b"\0\1"
        assert theirs.pending() == []
        table.map(env.front_domid, pages.refs, notify_port=channel.ours).close()
        assert arrived(theirs) == [channel.theirs]
        assert bytes(here[0:2]) == b"\0\1"


def test_closing_the_table_notifies_as_well(
    env: HandlesEnvironment,
    share: GrantShare,
    table: GrantTable,
    theirs: EventChannels,
    channel: Connected,
) -> None:
    pages = share.share(env.back_domid, 1)
    table.map(env.front_domid, pages.refs, notify_port=channel.ours)
    table.close()
    assert arrived(theirs) == [channel.theirs]


def test_a_killed_mapper_is_noticed(
    env: HandlesEnvironment, share: GrantShare, theirs: EventChannels
) -> None:
    pages = share.share(env.back_domid, 1)
    port = theirs.bind_unbound(env.back_domid)
    with pages.view() as here:
        here[8:10] = b"\1\1"
        process = env.start_mapper(pages.refs[0], 8, port)
        assert theirs.pending() == []
        assert bytes(here[8:10]) == b"\1\1"
        process.kill()
        assert arrived(theirs) == [port]
        assert bytes(here[8:10]) == b"\0\1"


def test_a_share_that_goes_clears_a_byte_and_notifies(
    env: HandlesEnvironment,
    share: GrantShare,
    table: GrantTable,
    ours: EventChannels,
    channel: Connected,
) -> None:
    pages = share.share(env.back_domid, 1, notify_offset=9, notify_port=channel.theirs)
    with table.map(env.front_domid, pages.refs) as mapping, mapping.view() as there:
        with pages.view() as here:
            here[8:10] = b"\1\1"
        assert ours.pending() == []
        pages.close()
        assert arrived(ours) == [channel.ours]
        assert bytes(there[8:10]) == b"\1\0"


def test_a_killed_sharer_is_noticed(
    env: HandlesEnvironment, table: GrantTable, ours: EventChannels
) -> None:
    port = ours.bind_unbound(env.front_domid)
    process = env.start_sharer(17, port)
    with table.map(env.front_domid, [process.ref]) as mapping, mapping.view() as there:
        assert there[17] == 1
        assert ours.pending() == []
        process.kill()
        assert arrived(ours) == [port]
        assert there[17] == 0


def test_a_notification_is_for_one_page_and_within_it(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    refs = share.share(env.back_domid, 2).refs
    with pytest.raises(ValueError, match="one page, not 2"):
        table.map(env.front_domid, refs, notify_offset=0)
    with pytest.raises(ValueError, match="one page, not 2"):
        share.share(env.back_domid, 2, notify_offset=0)
    for offset in (-1, PAGE_SIZE):
        with pytest.raises(ValueError, match="not within a page"):
            table.map(env.front_domid, refs[:1], notify_offset=offset)
        with pytest.raises(ValueError, match="not within a page"):
            share.share(env.back_domid, 1, notify_offset=offset)
    assert (table.held, share.held) == (0, 2)


def test_a_notification_by_a_port_that_is_not_bound_is_refused(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    pages = share.share(env.back_domid, 1)
    with pytest.raises(XenError, match=f"refs=.*notify_port={CLOSED_PORT}") as caught:
        table.map(env.front_domid, pages.refs, notify_port=CLOSED_PORT)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(XenError, match=f"notify_port={CLOSED_PORT}") as caught:
        share.share(env.back_domid, 1, notify_port=CLOSED_PORT)
    assert caught.value.errno == errno.EINVAL
    assert (table.held, share.held) == (0, 1)


def test_a_byte_of_a_read_only_mapping_cannot_be_cleared(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    pages = share.share(env.back_domid, 1)
    with pytest.raises(XenError, match="notify_offset=4") as caught:
        table.map(env.front_domid, pages.refs, writable=False, notify_offset=4)
    assert caught.value.errno == errno.EINVAL


# ------------------------------------------------------------------ copying


def test_copies_go_both_ways(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable, local: LocalMemory
) -> None:
    pages = share.share(env.back_domid, 1)
    foreign = (env.front_domid, pages.refs[0])
    with pages.view() as here, local.view() as ours:
        here[100:105] = b"hello"
        assert table.copy([CopySegment((*foreign, 100), (local, 7), 5)]) == [0]
        assert bytes(ours[6:13]) == b"\0hello\0"
        ours[0:3] = b"abc"
        assert table.copy([CopySegment((local, 0), (*foreign, 2000), 3)]) == [0]
        assert bytes(here[1999:2004]) == b"\0abc\0"


def test_a_batch_has_a_segment_for_each_page_and_both_directions(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    """More segments than gntdev takes to the hypervisor at once (GNTDEV_COPY_BATCH, 16)."""
    count = 40
    pages = numbered(share, env.back_domid, count)
    with LocalMemory(2 * count) as local, local.view() as ours, pages.view() as here:
        ours[count:] = bytes(range(100, 100 + count))
        segments = [
            segment
            for n, ref in enumerate(pages.refs)
            for segment in (
                CopySegment((env.front_domid, ref, 0), (local, n), 1),
                CopySegment((local, count + n), (env.front_domid, ref, 1), 1),
            )
        ]
        assert table.copy(segments) == [0] * 2 * count
        assert bytes(ours[:count]) == bytes(range(count))
        assert [here[n * PAGE_SIZE + 1] for n in range(count)] == list(range(100, 100 + count))


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (PAGE_SIZE - 1, 1), (0, PAGE_SIZE), (1, PAGE_SIZE - 1), (0, PAGE_SIZE - 1)],
)
@pytest.mark.parametrize("start", [0, 1, PAGE_SIZE - 1, 3 * PAGE_SIZE])
def test_a_copy_reaches_the_borders_and_no_further(
    env: HandlesEnvironment,
    share: GrantShare,
    table: GrantTable,
    local: LocalMemory,
    offset: int,
    length: int,
    start: int,
) -> None:
    content = bytes(n * 7 % 251 + 1 for n in range(PAGE_SIZE))
    pages = share.share(env.back_domid, 1)
    foreign = (env.front_domid, pages.refs[0], offset)
    with pages.view() as here, local.view() as ours:
        here[:] = content
        assert table.copy([CopySegment(foreign, (local, start), length)]) == [0]
        assert bytes(ours[start : start + length]) == content[offset : offset + length]
        assert not any(ours[:start])
        assert not any(ours[start + length :])
        here[:] = bytes(PAGE_SIZE)
        assert table.copy([CopySegment((local, start), foreign, length)]) == [0]
        expected = bytearray(PAGE_SIZE)
        expected[offset : offset + length] = content[offset : offset + length]
        assert bytes(here) == bytes(expected)


@pytest.mark.parametrize(
    ("offset", "start", "length"),
    [
        (0, 0, 0),
        (0, 0, -1),
        (0, 0, PAGE_SIZE + 1),
        (1, 0, PAGE_SIZE),
        (PAGE_SIZE - 1, 0, 2),
        (PAGE_SIZE, 0, 1),
        (-1, 0, 1),
        (0, 4 * PAGE_SIZE, 1),
        (0, 4 * PAGE_SIZE - 1, 2),
        (0, -1, 1),
    ],
)
def test_a_segment_that_leaves_its_page_is_refused(
    env: HandlesEnvironment,
    share: GrantShare,
    table: GrantTable,
    local: LocalMemory,
    offset: int,
    start: int,
    length: int,
) -> None:
    pages = share.share(env.back_domid, 1)
    foreign = (env.front_domid, pages.refs[0], offset)
    good = CopySegment((*foreign[:2], 0), (local, 0), 1)
    with pages.view() as here, local.view() as ours:
        here[0] = 1
        for bad in (
            CopySegment(foreign, (local, start), length),
            CopySegment((local, start), foreign, length),
        ):
            with pytest.raises(ValueError, match="bytes"):
                table.copy([good, bad])
        assert ours[0] == 0, "nothing of the batch was carried out"


def test_a_segment_has_one_foreign_side(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable, local: LocalMemory
) -> None:
    foreign = (env.front_domid, share.share(env.back_domid, 1).refs[0], 0)
    for source, target in [(foreign, foreign), ((local, 0), (local, 8))]:
        with pytest.raises(ValueError, match="one foreign and one local"):
            table.copy([CopySegment(source, target, 1)])
    assert table.copy([]) == []


@pytest.mark.parametrize("places", [{0}, {2}, {4}, {0, 2, 4}, set(range(5))], ids=str)
def test_each_segment_has_its_own_status(
    env: HandlesEnvironment,
    share: GrantShare,
    table: GrantTable,
    local: LocalMemory,
    places: set[int],
) -> None:
    pages = numbered(share, env.back_domid, 5)
    segments = [
        CopySegment(
            (env.front_domid, ABSURD_REF if n in places else pages.refs[n], 0), (local, n), 1
        )
        for n in range(5)
    ]
    with local.view() as ours:
        ours[:5] = b"\xff" * 5
        statuses = table.copy(segments)
        assert statuses == [GNTST_BAD_GNTREF if n in places else 0 for n in range(5)]
        assert list(ours[:5]) == [0xFF if n in places else n for n in range(5)]


def test_a_status_says_what_is_wrong(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable, local: LocalMemory
) -> None:
    read_only = (env.front_domid, share.share(env.back_domid, 1, writable=False).refs[0], 0)
    not_ours = (env.front_domid, share.share(env.stranger_domid, 1).refs[0], 0)
    nobody = (env.stranger_domid, GrantRef(8), 0)
    segments = [
        CopySegment(read_only, (local, 0), 8),
        CopySegment((local, 0), read_only, 8),
        CopySegment(not_ours, (local, 0), 8),
        CopySegment((local, 0), not_ours, 8),
        CopySegment(nobody, (local, 0), 8),
    ]
    assert table.copy(segments) == [
        0,
        GNTST_GENERAL_ERROR,
        GNTST_GENERAL_ERROR,
        GNTST_GENERAL_ERROR,
        GNTST_BAD_DOMAIN,
    ]


def test_a_page_that_is_mapped_may_be_copied_to_and_from(
    env: HandlesEnvironment, share: GrantShare, table: GrantTable
) -> None:
    """The local side of a copy may be a foreign page as well."""
    one, other = share.share(env.back_domid, 1), share.share(env.back_domid, 1)
    mapping = table.map(env.front_domid, one.refs)
    with one.view() as here, other.view() as there:
        here[0:2] = b"ab"
        segment = CopySegment((mapping, 0), (env.front_domid, other.refs[0], 5), 2)
        assert table.copy([segment]) == [0]
        assert bytes(there[4:8]) == b"\0ab\0"


# ------------------------------------------------------------------ closing under a view


@pytest.mark.parametrize(
    "export",
    [
        pytest.param(lambda view: view, id="view"),
        pytest.param(lambda view: view[8:16], id="slice"),
        pytest.param(lambda view: view[8:16][2:3], id="slice of a slice"),
        pytest.param(lambda view: view.cast("I"), id="cast"),
        pytest.param(memoryview, id="view of a view"),
        pytest.param(lambda view: view.toreadonly(), id="read-only"),
        pytest.param((ctypes.c_char * 16).from_buffer, id="ctypes"),
    ],
)
def test_a_mapping_cannot_be_closed_under_a_view(
    env: HandlesEnvironment,
    share: GrantShare,
    table: GrantTable,
    export: Callable[[memoryview], object],
) -> None:
    pages = share.share(env.back_domid, 1)
    mapping, other = (table.map(env.front_domid, pages.refs) for _ in range(2))
    exported = export(mapping.view())
    gc.collect()
    assert mapping.viewed
    with pytest.raises(BufferError, match="view"):
        mapping.close()
    with pytest.raises(BufferError, match="view"):
        table.close()
    assert other.closed
    assert (mapping.closed, table.closed, table.held) == (False, False, 1)
    with mapping.view() as view, pages.view() as here:
        view[0] = 3
        assert here[0] == 3, "the mapping is as usable as before"
    with table.map(env.front_domid, pages.refs):
        assert table.held == 2, "and so is the table"
    del exported
    gc.collect()
    table.close()
    assert (mapping.closed, table.closed, table.held) == (True, True, 0)


def test_shared_pages_cannot_be_closed_under_a_view(
    env: HandlesEnvironment, share: GrantShare
) -> None:
    pages = share.share(env.back_domid, 1)
    view = pages.view()
    with pytest.raises(BufferError, match="view"):
        pages.close()
    with pytest.raises(BufferError, match="view"):
        share.close()
    assert share.held == 1
    view.release()
    pages.close()
    assert share.held == 0


def test_a_released_view_is_of_no_use(env: HandlesEnvironment, share: GrantShare) -> None:
    pages = share.share(env.back_domid, 1)
    view = pages.view()
    part = view[4:8]
    view.release()
    with pytest.raises(ValueError, match="released"):
        view[0]
    part[0] = 1
    part.release()
    with pytest.raises(ValueError, match="released"):
        part[0] = 2
    pages.close()
    with pytest.raises(StaleHandleError):
        pages.view()


@pytest.mark.parametrize(("offset", "length"), [(0, PAGE_SIZE + 1), (-1, 1), (PAGE_SIZE + 1, None)])
def test_a_view_stays_within_the_pages(
    env: HandlesEnvironment, share: GrantShare, offset: int, length: int | None
) -> None:
    pages = share.share(env.back_domid, 1)
    with pytest.raises(ValueError, match="not within"):
        pages.view(offset, length)
    assert len(pages.view(PAGE_SIZE)) == 0


# ------------------------------------------------------------------ closed, forked, forgotten


class Everything(NamedTuple):
    """One of each, open."""

    share: GrantShare
    pages: SharedPages
    table: GrantTable
    ours: EventChannels
    port: Port


@pytest.fixture
def everything(
    env: HandlesEnvironment,
    share: GrantShare,
    table: GrantTable,
    ours: EventChannels,
    channel: Connected,
) -> Everything:
    return Everything(share, share.share(env.back_domid, 1), table, ours, channel.ours)


def stale_uses(env: HandlesEnvironment, it: Everything) -> list[Callable[[], object]]:
    """Every use of a handle that there is."""
    segment = CopySegment((it.pages, 0), (env.front_domid, GrantRef(8), 0), 1)
    return [
        lambda: it.share.share(env.back_domid, 1),
        lambda: it.pages.view(),
        lambda: it.pages.pointer(),
        lambda: it.table.map(env.front_domid, [GrantRef(8)]),
        lambda: it.table.map_foreign([(env.front_domid, GrantRef(8))]),
        lambda: it.table.copy([segment]),
        lambda: it.table.copy([]),
        lambda: it.ours.bind_unbound(env.front_domid),
        lambda: it.ours.bind_interdomain(env.front_domid, it.port),
        lambda: it.ours.bind_virq(VIRQ_DEBUG),
        lambda: it.ours.unbind(it.port),
        lambda: it.ours.notify(it.port),
        lambda: it.ours.pending(),
        lambda: it.ours.unmask([it.port]),
        lambda: it.ours.restrict(env.front_domid),
        lambda: it.ours.fileno(),
        lambda: it.ours.reset(),
    ]


def all_are_stale(env: HandlesEnvironment, it: Everything, why: str) -> None:
    for use in stale_uses(env, it):
        with pytest.raises(StaleHandleError, match=why) as caught:
            use()
        assert caught.value.errno == errno.EBADF


def test_what_is_closed_is_of_no_use(env: HandlesEnvironment, everything: Everything) -> None:
    for handle in (everything.share, everything.table, everything.ours):
        for _ in range(2):
            handle.close()
        assert handle.closed
        assert handle.held == 0
    assert everything.pages.closed
    all_are_stale(env, everything, "closed")


def test_a_child_of_fork_cannot_use_what_it_inherited(
    env: HandlesEnvironment, everything: Everything
) -> None:
    def child() -> None:
        all_are_stale(env, everything, "inherited by fork")
        for handle in (everything.pages, everything.share, everything.table, everything.ours):
            handle.close()

    in_child(child)
    with everything.pages.view() as view:
        view[0] = 1
        assert view[0] == 1, "and its parent does not notice"


def test_a_view_in_a_child_of_fork_reaches_nothing(everything: Everything) -> None:
    """SIGSEGV there is the lesser evil: see xenpy.handles."""
    view = everything.pages.view()
    view[0] = 1

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        view[0] = 2

    _, status = os.waitpid(forked(child), 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGSEGV
    assert view[0] == 1
    view.release()


def test_a_child_of_fork_keeps_nothing_alive(
    env: HandlesEnvironment,
    share: GrantShare,
    table: GrantTable,
    ours: EventChannels,
    theirs: EventChannels,
    channel: Connected,
) -> None:
    pages = share.share(env.back_domid, 1)
    mapping = table.map(env.front_domid, pages.refs, notify_offset=0, notify_port=channel.ours)
    here_end, child_end = socket.socketpair()

    def child() -> None:
        here_end.close()
        child_end.send(b"!")
        child_end.recv(1)

    pid = forked(child)
    child_end.close()
    assert here_end.recv(1) == b"!", "the child closes what it inherited first thing"
    with pages.view() as here:
        here[0] = 1
        mapping.close()
        assert arrived(theirs) == [channel.theirs]
        assert here[0] == 0
    ours.close()
    with env.back_xen().open_evtchn() as again:
        assert again.bind_interdomain(env.front_domid, channel.theirs), "it was free at once"
    here_end.close()
    reap(pid)


def test_a_child_of_fork_opens_its_own(env: HandlesEnvironment, everything: Everything) -> None:
    def child() -> None:
        assert open_handles() == []
        refuse_if_open("daemonise")
        with env.open_channels() as channels:
            assert channels.bind_unbound(env.back_domid)
            with pytest.raises(XenError):
                refuse_if_open("daemonise")

    in_child(child)


def test_a_fork_that_would_go_on_is_refused(everything: Everything) -> None:
    handles: list[Handle] = [everything.share, everything.pages, everything.table, everything.ours]
    assert set(handles) <= set(open_handles())
    with pytest.raises(XenError, match=r"daemonise\(open=\d+\).*before a fork") as caught:
        refuse_if_open("daemonise")
    assert caught.value.errno == errno.EBUSY
    for handle in handles:
        handle.close()
    assert not set(handles) & set(open_handles())


def forget_a_share(env: HandlesEnvironment) -> None:
    env.open_share().share(env.back_domid, 1)


def forget_a_table(env: HandlesEnvironment) -> None:
    env.back_xen().open_grants()


def forget_channels(env: HandlesEnvironment) -> None:
    env.open_channels().bind_unbound(env.back_domid)


@pytest.mark.parametrize("forget", [forget_a_share, forget_a_table, forget_channels])
@pytest.mark.parametrize("action", ["always", "error"])
def test_a_forgotten_handle_warns_and_is_closed(
    env: HandlesEnvironment,
    monkeypatch: pytest.MonkeyPatch,
    forget: Callable[[HandlesEnvironment], None],
    action: Literal["always", "error"],
) -> None:
    """Closed as well where warnings are errors, which `__del__` cannot raise."""
    said: list[object] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: said.append(message))
    monkeypatch.setattr(sys, "unraisablehook", lambda args: said.append(args.exc_value))
    with warnings.catch_warnings():
        warnings.simplefilter(action, ResourceWarning)
        before = env.census()
        forget(env)
        gc.collect()
    assert env.census() == before
    assert said
    assert all(isinstance(warning, ResourceWarning) for warning in said)
    assert "was never closed" in str(said[0])


# ------------------------------------------------------------------ event channels


def test_a_port_that_is_bound_is_pending_at_once_and_then_each_way(
    env: HandlesEnvironment, ours: EventChannels, theirs: EventChannels
) -> None:
    their_port = theirs.bind_unbound(env.back_domid)
    assert theirs.pending() == []
    our_port = ours.bind_interdomain(env.front_domid, their_port)
    assert (ours.ports, theirs.ports) == ({our_port}, {their_port})
    assert arrived(ours) == [our_port]
    assert theirs.pending() == []
    ours.unmask([our_port])
    assert ours.pending() == []
    for _ in range(3):
        ours.notify(our_port)
        assert arrived(theirs) == [their_port]
        theirs.unmask([their_port])
        theirs.notify(their_port)
        assert arrived(ours) == [our_port]
        ours.unmask([our_port])


def test_the_backend_may_allocate_and_the_frontend_bind(
    env: HandlesEnvironment, ours: EventChannels, theirs: EventChannels
) -> None:
    our_port = ours.bind_unbound(env.front_domid)
    their_port = theirs.bind_interdomain(env.back_domid, our_port)
    assert arrived(theirs) == [their_port]
    theirs.notify(their_port)
    assert arrived(ours) == [our_port]


def test_a_notification_before_the_other_end_is_bound_is_not_lost(
    env: HandlesEnvironment, ours: EventChannels, theirs: EventChannels
) -> None:
    their_port = theirs.bind_unbound(env.back_domid)
    theirs.notify(their_port)
    our_port = ours.bind_interdomain(env.front_domid, their_port)
    assert arrived(ours) == [our_port]


def test_a_masked_port_keeps_one_event(
    ours: EventChannels, theirs: EventChannels, channel: Connected
) -> None:
    for _ in range(3):
        theirs.notify(channel.theirs)
    assert arrived(ours) == [channel.ours]
    assert ours.pending() == []
    for _ in range(5):
        theirs.notify(channel.theirs)
        assert ours.pending() == [], "masked since it fired"
    ours.unmask([channel.ours])
    assert arrived(ours) == [channel.ours]
    ours.unmask([channel.ours])
    assert ours.pending() == []


def test_each_port_that_fired_is_told_once(
    env: HandlesEnvironment, ours: EventChannels, theirs: EventChannels
) -> None:
    """In no order: the kernel spreads the ports of a handle over the vcpus."""
    pairs: list[Connected] = []
    for _ in range(8):
        their_port = theirs.bind_unbound(env.back_domid)
        pairs.append(Connected(ours.bind_interdomain(env.front_domid, their_port), their_port))
        assert arrived(ours) == [pairs[-1].ours]
    ours.unmask([pair.ours for pair in pairs])
    fired = [pairs[number] for number in (3, 0, 7, 1, 6)]
    for pair in fired:
        theirs.notify(pair.theirs)
    told: list[Port] = []
    while len(told) < len(fired):
        some = arrived(ours, limit=2)
        assert 0 < len(some) <= 2
        told += some
    assert sorted(told) == sorted(pair.ours for pair in fired)
    assert ours.pending() == []


def test_more_ports_than_one_read_takes_are_all_told(
    env: HandlesEnvironment, ours: EventChannels, theirs: EventChannels
) -> None:
    count = READ_LIMIT + 50
    ports = {
        ours.bind_interdomain(env.front_domid, theirs.bind_unbound(env.back_domid))
        for _ in range(count)
    }
    assert ours.held == count
    for _ in range(2):
        told: list[Port] = []
        while len(told) < count:
            told += arrived(ours, limit=count)
        assert len(told) == count
        assert set(told) == ports
        ours.unmask(told)
        for port in theirs.ports:
            theirs.notify(port)


def test_as_many_ports_are_taken_as_asked_for(
    ours: EventChannels, theirs: EventChannels, channel: Connected
) -> None:
    theirs.notify(channel.theirs)
    wait_readable(ours)
    assert ours.pending(0) == []
    assert ours.pending(10 * READ_LIMIT) == [channel.ours]


@pytest.mark.slow
def test_a_hundred_thousand_notifications_leave_the_right_state(
    env: HandlesEnvironment,
    share: GrantShare,
    table: GrantTable,
    ours: EventChannels,
    theirs: EventChannels,
    channel: Connected,
) -> None:
    """They coalesce; what may never happen is that the last change goes unseen."""
    total = 100_000
    pages = share.share(env.back_domid, 1)
    mapping = table.map(env.front_domid, pages.refs)

    def produce() -> None:
        with pages.view().cast("I") as counter:
            for number in range(1, total + 1):
                counter[0] = number
                theirs.notify(channel.theirs)

    producer = threading.Thread(target=produce)
    producer.start()
    wakeups = seen = 0
    with mapping.view().cast("I") as counter:
        while seen < total:
            assert arrived(ours) == [channel.ours]
            wakeups += 1
            assert counter[0] >= seen
            seen = counter[0]
            ours.unmask([channel.ours])
    producer.join()
    assert 1 <= wakeups <= total
    # What was sent while the last one was looked at may still come; then it goes on as before.
    ours.pending()
    ours.unmask([channel.ours])
    theirs.notify(channel.theirs)
    assert arrived(ours) == [channel.ours]


@pytest.mark.parametrize("port", [Port(0), CLOSED_PORT, Port(1 << 20), ABSURD_PORT])
def test_a_port_that_nobody_allocated_cannot_be_bound(
    env: HandlesEnvironment, ours: EventChannels, port: Port
) -> None:
    with pytest.raises(XenError) as caught:
        ours.bind_interdomain(env.front_domid, port)
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value) == (
        f"[EINVAL] bind_interdomain(domid={env.front_domid}, remote_port={port}): Invalid argument"
    )
    assert ours.held == 0


def test_a_port_of_another_pair_cannot_be_bound(
    env: HandlesEnvironment, ours: EventChannels, theirs: EventChannels, channel: Connected
) -> None:
    for port in (channel.theirs, theirs.bind_unbound(env.stranger_domid)):
        with pytest.raises(XenError) as caught:
            ours.bind_interdomain(env.front_domid, port)
        assert caught.value.errno == errno.EINVAL
    assert ours.held == 1


def test_a_domain_that_is_not_there_cannot_be_bound_to(
    env: HandlesEnvironment, ours: EventChannels
) -> None:
    with pytest.raises(XenError, match=f"domid={env.stranger_domid}") as caught:
        ours.bind_interdomain(env.stranger_domid, Port(1))
    assert caught.value.errno == errno.ESRCH


def test_an_end_that_is_closed_leaves_the_other_free_to_be_bound_again(
    env: HandlesEnvironment, ours: EventChannels, theirs: EventChannels, channel: Connected
) -> None:
    ours.unbind(channel.ours)
    assert ours.held == 0
    theirs.notify(channel.theirs)
    port = ours.bind_interdomain(env.front_domid, channel.theirs)
    assert arrived(ours) == [port]
    theirs.notify(channel.theirs)
    ours.unmask([port])
    assert arrived(ours) == [port]


def test_what_a_port_had_pending_goes_with_it(
    ours: EventChannels, theirs: EventChannels, channel: Connected
) -> None:
    theirs.notify(channel.theirs)
    ours.unbind(channel.ours)
    assert ours.pending() == []


def test_a_closed_handle_closes_its_ports(
    env: HandlesEnvironment, ours: EventChannels, channel: Connected
) -> None:
    ours.close()
    with env.back_xen().open_evtchn() as again:
        assert again.bind_interdomain(env.front_domid, channel.theirs)


@pytest.mark.parametrize("use", ["notify", "unbind", "unmask"])
def test_a_port_of_another_handle_is_refused(
    env: HandlesEnvironment, ours: EventChannels, theirs: EventChannels, use: str
) -> None:
    """Of another handle of this domain, of the other domain, and of nobody."""
    their_port = theirs.bind_unbound(env.back_domid)
    with env.back_xen().open_evtchn() as other:
        port = other.bind_interdomain(env.front_domid, their_port)
        calls: dict[str, Callable[[Port], object]] = {
            "notify": ours.notify,
            "unbind": ours.unbind,
            "unmask": lambda port: ours.unmask([port]),
        }
        for stranger in (port, CLOSED_PORT, Port(0)):
            with pytest.raises(XenError, match=f"{use}.*{stranger}") as caught:
                calls[use](stranger)
            assert caught.value.errno == errno.ENOTCONN
            assert not isinstance(caught.value, ConnectionError), "nothing is wrong with xenstored"
        other.unmask([port])


def test_nothing_is_unmasked_if_one_port_is_not_ours(
    ours: EventChannels, theirs: EventChannels, channel: Connected
) -> None:
    theirs.notify(channel.theirs)
    assert arrived(ours) == [channel.ours]
    theirs.notify(channel.theirs)
    with pytest.raises(XenError):
        ours.unmask([channel.ours, CLOSED_PORT])
    assert ours.pending() == []
    ours.unmask([])
    assert ours.pending() == []
    ours.unmask([channel.ours])
    assert arrived(ours) == [channel.ours]


def test_a_restricted_handle_binds_one_domain_only(
    env: HandlesEnvironment, ours: EventChannels, theirs: EventChannels
) -> None:
    port = theirs.bind_unbound(env.back_domid)
    other = env.stranger_domid
    ours.restrict(other)
    refused: list[Callable[[], object]] = [
        lambda: ours.restrict(other),
        lambda: ours.restrict(DomId(other + 1)),
        lambda: ours.bind_unbound(other),
        lambda: ours.bind_virq(VIRQ_DEBUG),
        lambda: ours.bind_interdomain(env.front_domid, port),
    ]
    for call in refused:
        with pytest.raises(XenPermissionError) as caught:
            call()
        assert caught.value.errno == errno.EACCES
    with pytest.raises(XenError) as caught_other:
        ours.bind_interdomain(other, port)
    assert caught_other.value.errno == errno.ESRCH, "allowed, but nobody is there"


@pytest.mark.parametrize("domid", [DOM0, DomId(0x7FF0), DomId(0x7FFF)])
def test_a_handle_cannot_be_restricted_to_what_is_no_guest(
    ours: EventChannels, domid: DomId
) -> None:
    with pytest.raises(XenError, match=f"restrict.domid={domid}") as caught:
        ours.restrict(domid)
    assert caught.value.errno == errno.EINVAL
    assert ours.bind_unbound(DOM0), "nothing has changed"


def test_a_virq_is_bound_once(ours: EventChannels) -> None:
    port = ours.bind_virq(VIRQ_DEBUG)
    assert ours.ports == {port}
    with pytest.raises(XenExistsError, match=f"bind_virq.virq={VIRQ_DEBUG}"):
        ours.bind_virq(VIRQ_DEBUG)
    ours.unbind(port)
    ours.unbind(ours.bind_virq(VIRQ_DEBUG))
    with pytest.raises(XenError, match=f"virq={NR_VIRQS}") as caught:
        ours.bind_virq(NR_VIRQS)
    assert caught.value.errno == errno.EINVAL


def test_a_reset_forgets_what_had_fired(
    ours: EventChannels, theirs: EventChannels, channel: Connected
) -> None:
    theirs.notify(channel.theirs)
    wait_readable(ours)
    ours.reset()
    assert ours.pending() == []
    assert ours.held == 1
    theirs.notify(channel.theirs)
    assert ours.pending() == [], "it is masked"
    ours.unmask([channel.ours])
    assert arrived(ours) == [channel.ours]
