# SPDX-License-Identifier: MIT
"""Records in shared memory, as Python sees them; tests/engine/trace.c is about the engine in C."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from xenpy.errors import XenError
from xenpy.trace import READ_LIMIT, REQUEST_LIMIT, Trace, TraceReader

KEPT = (1 << 14) - 32
"""Records that a reader can still get: XENPY_TRACE_ENTRIES - XENPY_TRACE_BATCH."""


@pytest.fixture
def trace() -> Iterator[Trace]:
    trace = Trace()
    yield trace
    trace.close()


@pytest.fixture
def reader(trace: Trace) -> Iterator[TraceReader]:
    fd = trace.reader_fd()
    with TraceReader(fd) as reader:
        os.close(fd)
        yield reader


def test_what_is_put_is_read(trace: Trace, reader: TraceReader) -> None:
    assert trace.taken() == 0
    trace.want(1)
    taken = trace.taken()
    assert taken > 0
    trace.put(taken, 0xFFFF_FFFF, 1 << 63, b"request", b"answer")
    trace.put(taken, 0, 7, b"r" * 200, b"a" * 20)
    first, second = reader.read()
    assert first.taken == taken <= first.answered <= second.answered
    assert (first.position, first.detail) == (0xFFFF_FFFF, 1 << 63)
    assert (first.request_size, first.request) == (7, b"request".ljust(REQUEST_LIMIT, b"\0"))
    assert (first.response_size, first.response) == (6, b"answer".ljust(16, b"\0"))
    # Of what is too large the beginning is kept, and how large it was.
    assert (second.request_size, second.request) == (200, b"r" * REQUEST_LIMIT)
    assert (second.response_size, second.response) == (20, b"a" * 16)
    assert reader.read() == []
    assert reader.lost == 0


def test_what_was_written_over_is_counted(trace: Trace, reader: TraceReader) -> None:
    for number in range(KEPT + 1000):
        trace.put(1, number, 0, b"", b"")
    got = [record.position for _ in range(100) for record in reader.read()]
    assert got == list(range(1000, KEPT + 1000))
    assert reader.lost == 1000
    assert len(got) > READ_LIMIT


def test_a_reader_sees_what_comes_after_it(trace: Trace, reader: TraceReader) -> None:
    trace.put(1, 0, 0, b"", b"")
    fd = trace.reader_fd()
    with TraceReader(fd) as late:
        trace.put(1, 1, 0, b"", b"")
        assert [record.position for record in late.read()] == [1]
    os.close(fd)
    assert [record.position for record in reader.read()] == [0, 1]


def test_a_reader_cannot_write(trace: Trace) -> None:
    fd = trace.reader_fd()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(fd, b"x", 0)
    os.close(fd)


def test_the_end_is_seen_and_what_came_before_it(trace: Trace, reader: TraceReader) -> None:
    trace.put(1, 5, 0, b"", b"")
    assert not reader.ended
    trace.close()
    trace.close()
    trace.want(-1)
    assert reader.ended
    assert [record.position for record in reader.read()] == [5]
    reader.close()
    reader.close()


def test_memory_of_another_version_is_refused(trace: Trace) -> None:
    other = os.memfd_create("other")
    with pytest.raises(XenError, match="another version of xenpy"):
        TraceReader(other)
    os.ftruncate(other, os.fstat(trace.fd).st_size)
    with pytest.raises(XenError, match="another version of xenpy"):
        TraceReader(other)
    os.close(other)


def test_nothing_is_there_until_somebody_looks(trace: Trace) -> None:
    assert os.fstat(trace.fd).st_blocks * 512 <= 4096


def test_a_trace_that_cannot_be_mapped_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frontend that comes again and again would take one each time."""

    def refuse(*_: object, **__: object) -> mmap.mmap:
        raise OSError(errno.EMFILE, "too many open files")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(OSError, match="too many open files"):
        Trace()
    assert os.listdir("/proc/self/fd") == before
