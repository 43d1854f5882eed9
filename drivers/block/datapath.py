# SPDX-License-Identifier: MIT
"""The batch tier: all requests of one wake-up, from checked request to status.

Guest data comes and goes in one of two ways.  Pages that the frontend keeps granted are
mapped (`grant_cache`), and the store reads and writes them directly.  All others pass
through a pool of ours by grant copy, one call in and one call out for the whole batch.
The guest's memory never decides anything here: sizes and places come from the checked
request alone.

Requests are carried out in ring order; neighbours on the disk become one vectored call.
FLUSH is served as blkback and QEMU serve it: first everything before it is made durable,
then its segments, if it has any, are written.  WRITE_BARRIER is that and one more flush:
its own data is durable before anything after it is written.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from xenpy.backend import DeviceContext
from xenpy.drivers.block.grant_cache import GrantCache
from xenpy.drivers.block.protocol import (
    OP_DISCARD,
    OP_FLUSH_DISKCACHE,
    OP_READ,
    OP_WRITE_BARRIER,
    RSP_EOPNOTSUPP,
    RSP_ERROR,
    RSP_OKAY,
    SECTOR_SHIFT,
    Indirect,
    Request,
)
from xenpy.drivers.block.store import Store
from xenpy.drivers.block.store_failure import errno_of
from xenpy.errors import XenError
from xenpy.gnttab import CopySegment, GrantTable
from xenpy.memory import LocalMemory
from xenpy.types import PAGE_SIZE, GrantRef

__all__ = ["BATCH_LIMIT", "Counters", "Datapath"]

BATCH_LIMIT: Final = 32
"""Requests taken in one go: a one-page ring.  Bounds the time between looks at the stop
signal."""
POOL_PAGES: Final = 1024
"""Pages of data that are under way at once, per queue; a batch of more is served in pieces.
Less than `grant_cache.MAX_PAGES`, so that a piece can be mapped whole."""
FLUSHES: Final = (OP_FLUSH_DISKCACHE, OP_WRITE_BARRIER)
ALONE: Final = (*FLUSHES, OP_DISCARD)
"""Operations that are no neighbours of what comes before them."""


@dataclass(slots=True)
class Counters:
    """What a disk has done; the first six as sysfs of the kernel's blkback names them."""

    rd_req: int = 0
    wr_req: int = 0
    f_req: int = 0
    ds_req: int = 0
    rd_sect: int = 0
    wr_sect: int = 0
    ds_sect: int = 0
    requests: int = 0
    indirect: int = 0
    batches: int = 0
    wakeups: int = 0
    notifications: int = 0
    refused: int = 0
    errors: int = 0
    flushes_failed: int = 0
    grants_mapped: int = 0
    grants_unmapped: int = 0
    grants_copied: int = 0

    def add(self, others: Mapping[str, int]) -> None:
        """Add counts of the same names."""
        for name, value in others.items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(slots=True)
class _Job:
    """A request on its way.

    Attributes:
        buffers: its data, in order; the guest's own pages or one piece of the pool.
        pool_offset: where in the pool, or None if the data is mapped.
    """

    request: Request
    status: int = RSP_OKAY
    buffers: Sequence[memoryview] = ()
    pool_offset: int | None = None


class Datapath:
    """Carries out batches for one queue.  Used by the queue's thread alone.

    Args:
        context: whose grants, and where to log.
        grants: the queue's grant-table handle.
        store: the disk.
        persistent: the frontend keeps its grants.
        counters: counted up here.
    """

    def __init__(
        self,
        context: DeviceContext,
        grants: GrantTable,
        store: Store,
        counters: Counters,
        *,
        persistent: bool,
    ) -> None:
        self._context = context
        self._log = context.log
        self._domid = context.domid
        self._grants = grants
        self._store = store
        self._counters = counters
        self._cache: GrantCache | None = None
        if persistent:
            self._cache = GrantCache(grants, context.domid, context.name, context.deferred)
        # Pages of the pool come into being when first used.
        self._pool = LocalMemory(POOL_PAGES * PAGE_SIZE)
        self._pool_view = self._pool.view()

    def copy_tables(self, requests: Sequence[Indirect]) -> list[bytes | None]:
        """The segments of indirect requests, copied out of the guest's pages once (XSA-155).

        Out of mapped pages, else by one grant copy for all.  None: they cannot be read.
        """
        self._counters.indirect += len(requests)
        cache = self._cache
        if cache is not None:
            cache.prepare(GrantRef(gref) for request in requests for gref in request.grefs)
            self._count_grants(cache)
        tables = [None if cache is None else _mapped_table(one, cache) for one in requests]
        segments: list[CopySegment] = []
        places: dict[int, tuple[int, int]] = {}
        for number, request in enumerate(requests):
            if tables[number] is not None:
                continue
            start = len(segments)
            for gref, length in request.parts:
                # The pool is idle between batches; what is copied there is taken out at once.
                here = self._pool, len(segments) * PAGE_SIZE
                segments.append(CopySegment((self._domid, GrantRef(gref), 0), here, length))
            places[number] = start, len(segments)
        statuses = self._grant_copy(segments)
        for number, (start, end) in places.items():
            if not any(statuses[start:end]):
                size = (end - start) * PAGE_SIZE
                tables[number] = bytes(self._pool_view[start * PAGE_SIZE :][:size])
        return tables

    def execute(self, requests: Sequence[Request]) -> list[int]:
        """Carry out at most `BATCH_LIMIT` requests.  Returns the status of each.

        Nothing of a request is in flight any more when its status is known, so that a
        page may be unmapped and a response pushed.
        """
        return [status for piece in _pieces(requests) for status in self._execute(piece)]

    def _execute(self, requests: Sequence[Request]) -> list[int]:
        jobs = [_Job(request) for request in requests]
        try:
            self._place(jobs)
            self._copy(jobs, from_guest=True)
            self._run(jobs)
            self._copy(jobs, from_guest=False)
        finally:
            # Explicitly: a traceback that keeps a frame alive must not keep a page mapped.
            for job in jobs:
                for view in job.buffers:
                    view.release()
        self._count(jobs)
        return [job.status for job in jobs]

    def close(self) -> None:
        """Unmap every data page and give the pool back, once the store has let go of it."""
        if self._cache is not None:
            self._cache.close()
            self._count_grants(self._cache)
        self._pool_view.release()
        self._context.deferred.close(self._pool, self._context.name)

    def _place(self, jobs: Sequence[_Job]) -> None:
        """Find each request's data: mapped pages, or a piece of the pool."""
        cache = self._cache
        if cache is not None:
            cache.prepare([segment[0] for job in jobs for segment in job.request.segments])
            self._count_grants(cache)
        offset = 0
        for job in jobs:
            if not job.request.segments or (cache is not None and _use_mapped(job, cache)):
                continue
            size = job.request.sectors << SECTOR_SHIFT
            job.pool_offset = offset
            job.buffers = [self._pool_view[offset : offset + size]]
            # The next request starts on a page of its own, so that a copy stays within one.
            offset += -(-size // PAGE_SIZE) * PAGE_SIZE

    def _copy(self, jobs: Sequence[_Job], *, from_guest: bool) -> None:
        """Grant-copy what is in the pool, one call for all.  A segment that fails fails its
        request, and no other."""
        segments: list[CopySegment] = []
        owners: list[_Job] = []
        for job in jobs:
            write = job.request.operation != OP_READ
            if job.pool_offset is None or job.status != RSP_OKAY or write != from_guest:
                continue
            local = job.pool_offset
            for gref, first, last in job.request.segments:
                length = (last - first + 1) << SECTOR_SHIFT
                foreign = self._domid, gref, first << SECTOR_SHIFT
                here = self._pool, local
                source, target = (foreign, here) if from_guest else (here, foreign)
                segments.append(CopySegment(source, target, length))
                owners.append(job)
                local += length
        for job, status in zip(owners, self._grant_copy(segments), strict=True):
            if status != 0:
                job.status = RSP_ERROR

    def _grant_copy(self, segments: Sequence[CopySegment]) -> list[int]:
        """One call for all; the status of each, 0 if it was copied."""
        if not segments:
            return []
        self._counters.grants_copied += len(segments)
        try:
            statuses = self._grants.copy(segments)
        except XenError as error:
            self._log.warning("grant copy of %d segments failed: %s", len(segments), error)
            return [RSP_ERROR] * len(segments)
        failed = [number for number, status in enumerate(statuses) if status != 0]
        if failed:
            text = "grant copy failed for %d of %d segments, the first with status %d: %r"
            first = failed[0]
            self._log.info(text, len(failed), len(segments), statuses[first], segments[first])
        return statuses

    def _run(self, jobs: Sequence[_Job]) -> None:
        """The I/O, in order; neighbours together."""
        neighbours: list[_Job] = []
        for job in jobs:
            if job.status != RSP_OKAY:
                continue
            operation = job.request.operation
            alone = operation in ALONE
            if neighbours and (alone or not _follows(neighbours[-1].request, job.request)):
                self._transfer(neighbours)
                neighbours = []
            if alone:
                self._act(job)
            if job.request.segments and job.status == RSP_OKAY:
                neighbours.append(job)
            if operation == OP_WRITE_BARRIER and neighbours:
                self._transfer(neighbours)
                neighbours = []
                if job.status == RSP_OKAY:
                    self._act(job)
        if neighbours:
            self._transfer(neighbours)

    def _transfer(self, jobs: Sequence[_Job]) -> None:
        """One vectored read or write for requests that follow each other on the disk."""
        first = jobs[0].request
        buffers = jobs[0].buffers if len(jobs) == 1 else [v for job in jobs for v in job.buffers]
        offset = first.sector << SECTOR_SHIFT
        try:
            if first.operation == OP_READ:
                self._store.readv(buffers, offset)
            elif self._store.flush_failed:
                raise OSError(errno.EIO, "an earlier flush failed: writes are lost")
            else:
                self._store.writev(buffers, offset)
        except Exception as error:
            if len(jobs) > 1:
                # Which of them met the error?  To read or write the others again does no harm.
                for job in jobs:
                    self._transfer([job])
                return
            jobs[0].status = self._status_of(error, jobs[0].request)

    def _act(self, job: _Job) -> None:
        """Flush or discard."""
        request = job.request
        try:
            if request.operation in FLUSHES:
                self._store.flush()
            else:
                self._store.discard(request.sector << SECTOR_SHIFT, request.sectors << SECTOR_SHIFT)
        except Exception as error:
            if request.operation in FLUSHES:
                self._store.flush_failed = True
                self._counters.flushes_failed += 1
            job.status = self._status_of(error, request)

    def _status_of(self, error: Exception, request: Request) -> int:
        what = f"operation {request.operation} at {request.sector} of {request.sectors} sectors"
        number = errno_of(error, self._log, what)
        # Of all that was offered only a discard may turn out not to be supported: for a flush
        # or barrier blkfront would take that for success.
        unsupported = number == errno.EOPNOTSUPP and request.operation == OP_DISCARD
        return RSP_EOPNOTSUPP if unsupported else RSP_ERROR

    def _count(self, jobs: Sequence[_Job]) -> None:
        counters = self._counters
        for job in jobs:
            _, operation, _, sectors, _ = job.request
            if job.status != RSP_OKAY:
                counters.errors += 1
                sectors = 0
            if operation == OP_READ:
                counters.rd_req += 1
                counters.rd_sect += sectors
            elif operation == OP_DISCARD:
                counters.ds_req += 1
                counters.ds_sect += sectors
            else:
                counters.wr_sect += sectors
                if operation in FLUSHES:
                    counters.f_req += 1
                else:
                    counters.wr_req += 1

    def _count_grants(self, cache: GrantCache) -> None:
        counters = self._counters
        counters.grants_mapped += cache.maps
        counters.grants_unmapped += cache.unmaps
        cache.maps = cache.unmaps = 0


def _pieces(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Cut a batch into pieces of at most `POOL_PAGES` pages."""
    piece: list[Request] = []
    pages = 0
    for request in requests:
        pages += len(request.segments)
        if pages > POOL_PAGES:
            yield piece
            piece, pages = [], len(request.segments)
        piece.append(request)
    if piece:
        yield piece


def _mapped_table(request: Indirect, cache: GrantCache) -> bytes | None:
    """Copy the segments out of the pages that stay mapped.  None if one of them is not."""
    table = b""
    for gref, length in request.parts:
        page = cache.pages.get(GrantRef(gref))
        if page is None:
            return None
        table += page[:length]
    return table


def _follows(one: Request, other: Request) -> bool:
    """Whether `other` goes on where `one` ends, in the same direction."""
    same_direction = (one.operation == OP_READ) == (other.operation == OP_READ)
    return same_direction and one.sector + one.sectors == other.sector


def _use_mapped(job: _Job, cache: GrantCache) -> bool:
    """Point `job` at the guest's own pages.  False if one of them is not mapped."""
    pages = cache.pages
    buffers: list[memoryview] = []
    for gref, first, last in job.request.segments:
        page = pages.get(gref)
        if page is None:
            for view in buffers:
                view.release()
            return False
        buffers.append(page[first << SECTOR_SHIFT : (last + 1) << SECTOR_SHIFT])
    job.buffers = buffers
    return True
