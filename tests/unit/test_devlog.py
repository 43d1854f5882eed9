# SPDX-License-Identifier: MIT
"""A guest cannot flood the log, and what was suppressed is counted."""

from __future__ import annotations

import logging

import pytest

from xenpy.devlog import BURST, BoundedLog, TokenBucket


def test_a_flood_is_bounded_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = BoundedLog(logging.getLogger("xenpy.test"), "vbd3/1/51712")
    with caplog.at_level(logging.INFO):
        for number in range(1000):
            log.warning("bad request %d", number)
    assert len(caplog.records) <= BURST + 1
    assert log.suppressed >= 1000 - BURST - 1
    assert caplog.records[0].getMessage() == "vbd3/1/51712: bad request 0"


def test_the_next_line_says_how_many_were_lost(caplog: pytest.LogCaptureFixture) -> None:
    log = BoundedLog(logging.getLogger("xenpy.test"), "vbd3/1/51712")
    log.suppressed = 7
    with caplog.at_level(logging.INFO):
        log.info("on again")
    assert caplog.records[0].getMessage() == (
        "vbd3/1/51712: (7 lines before this one were suppressed) on again"
    )
    assert log.suppressed == 0


def test_a_trace_is_whole(caplog: pytest.LogCaptureFixture) -> None:
    log = BoundedLog(logging.getLogger("xenpy.test"), "vbd3/1/51712")
    with caplog.at_level(logging.DEBUG):
        for number in range(200):
            log.debug("step %d", number)
    assert len(caplog.records) == 200


def test_tokens_refill_at_the_rate() -> None:
    now = 0.0
    bucket = TokenBucket(burst=2, rate=4.0, clock=lambda: now)
    assert [bucket.take(), bucket.take()] == [0.0, 0.0]
    assert bucket.take() == pytest.approx(0.25)
    now = 0.25
    assert bucket.take() == 0.0
    now = 100.0
    assert [bucket.take(), bucket.take()] == [0.0, 0.0]
    assert bucket.take() > 0.0
