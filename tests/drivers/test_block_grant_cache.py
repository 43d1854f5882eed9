# SPDX-License-Identifier: MIT
"""The cache of persistent grants, by what the fake Xen has mapped and not by its own count."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from xenpy.drivers.block.grant_cache import EXTENT_PAGES, GrantCache
from xenpy.gnttab import GrantTable, SharedPages
from xenpy.runtime import Deferred
from xenpy.testing.fake_xen import FakeXen
from xenpy.types import DOM0, PAGE_SIZE, DomId, GrantRef

GUEST = DomId(1)
BOUND = 8


@pytest.fixture
def xen() -> Iterator[FakeXen]:
    xen = FakeXen()
    yield xen
    assert set(xen.census().values()) == {0}
    xen.close()


@pytest.fixture
def pages(xen: FakeXen) -> Iterator[SharedPages]:
    with xen.domain(GUEST).open_share() as share:
        yield share.share(DOM0, 64)


@pytest.fixture
def grants(xen: FakeXen) -> Iterator[GrantTable]:
    with xen.domain(DOM0).open_grants() as grants:
        yield grants


def test_evicted_pages_are_really_unmapped(
    xen: FakeXen, pages: SharedPages, grants: GrantTable
) -> None:
    deferred = Deferred()
    cache = GrantCache(grants, GUEST, "vbd3/1/51712", deferred, max_pages=BOUND)
    for start in range(0, 64, 4):
        cache.prepare(pages.refs[start : start + 4])
        assert xen.grants.mapped() == len(cache) <= BOUND
        assert cache.pages.get(pages.refs[start]) is not None
    assert cache.pages.get(pages.refs[0]) is None
    cache.close()
    assert xen.grants.mapped() == 0
    assert cache.maps == cache.unmaps == 64
    assert len(deferred) == 0


def test_what_is_used_again_stays(xen: FakeXen, pages: SharedPages, grants: GrantTable) -> None:
    cache = GrantCache(grants, GUEST, "vbd3/1/51712", Deferred(), max_pages=BOUND)
    kept = pages.refs[:2]
    cache.prepare(kept)
    for start in range(2, 40, 2):
        cache.prepare([*kept, *pages.refs[start : start + 2]])
    assert all(cache.pages.get(ref) is not None for ref in kept)
    # Each new pair, and the first two once.
    assert cache.maps == 40
    cache.close()


def test_a_batch_larger_than_the_cache_is_mapped_in_part(
    xen: FakeXen, pages: SharedPages, grants: GrantTable
) -> None:
    cache = GrantCache(grants, GUEST, "vbd3/1/51712", Deferred(), max_pages=EXTENT_PAGES)
    cache.prepare(pages.refs)
    assert xen.grants.mapped() == EXTENT_PAGES
    assert cache.pages.get(pages.refs[0]) is not None
    assert cache.pages.get(pages.refs[-1]) is None
    cache.close()


def test_a_bad_reference_is_none_and_is_tried_again(
    xen: FakeXen, pages: SharedPages, grants: GrantTable
) -> None:
    cache = GrantCache(grants, GUEST, "vbd3/1/51712", Deferred(), max_pages=BOUND)
    for turn in range(1, 3):
        cache.prepare([pages.refs[0], GrantRef(4000)])
        assert cache.pages.get(pages.refs[0]) is None
        assert cache.map_failures == turn
    cache.prepare([pages.refs[0]])
    assert cache.pages.get(pages.refs[0]) is not None
    cache.close()


def test_a_page_under_a_view_is_unmapped_when_the_view_has_gone(
    xen: FakeXen, pages: SharedPages, grants: GrantTable
) -> None:
    deferred = Deferred()
    cache = GrantCache(grants, GUEST, "vbd3/1/51712", deferred, max_pages=BOUND)
    cache.prepare(pages.refs[:1])
    page = cache.pages.get(pages.refs[0])
    assert page is not None
    part = page[512:1024]
    cache.close()
    assert len(deferred) == xen.grants.mapped() == 1
    assert bytes(part) == bytes(512)
    part.release()
    del page
    assert deferred.retry() == 0
    assert xen.grants.mapped() == 0


def test_the_views_are_the_guest_s_pages(
    xen: FakeXen, pages: SharedPages, grants: GrantTable
) -> None:
    cache = GrantCache(grants, GUEST, "vbd3/1/51712", Deferred(), max_pages=BOUND)
    cache.prepare([pages.refs[5], pages.refs[3]])
    with pages.view() as view:
        for number in (3, 5):
            view[number * PAGE_SIZE] = number
    for number in (3, 5):
        page = cache.pages.get(pages.refs[number])
        assert page is not None
        assert (page[0], len(page)) == (number, PAGE_SIZE)
        del page
    cache.close()
