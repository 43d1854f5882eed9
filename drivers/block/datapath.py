# SPDX-License-Identifier: MIT
"""The batch tier: all requests of one wake-up, from checked request to status.

Guest data comes and goes in one of two ways.  Pages that the frontend keeps granted are
mapped (`grant_cache`), and the store reads and writes them directly.  All others pass
through a pool of ours by grant copy, one call in and one call out for the whole batch.
The guest's memory never decides anything here: sizes and places come from the checked
request alone.

Requests are carried out in ring order; neighbours on the disk become one vectored call.
FLUSH is served as blkback and QEMU serve it: first everything before it is made durable,
then its segments, if it has any, are written.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from xenpy.backend import DeviceContext
from xenpy.drivers.block.grant_cache import GrantCache
from xenpy.drivers.block.protocol import (
    MAX_SEGMENTS,
    OP_FLUSH_DISKCACHE,
    OP_READ,
    RSP_EOPNOTSUPP,
    RSP_ERROR,
    RSP_OKAY,
    SECTOR_SHIFT,
    Request,
)
from xenpy.drivers.block.store import Store
from xenpy.errors import XenError
from xenpy.gnttab import CopySegment, GrantTable
from xenpy.memory import LocalMemory
from xenpy.types import PAGE_SIZE, GrantRef

__all__ = ["BATCH_LIMIT", "Counters", "Datapath"]

BATCH_LIMIT: Final = 32
"""Requests served in one go: a one-page ring.  Bounds the pool and the time between
looks at the stop signal."""
MAX_REQUEST_BYTES: Final = MAX_SEGMENTS * PAGE_SIZE


@dataclass(slots=True)
class Counters:
    """What a disk has done; the first five as sysfs of the kernel's blkback names them."""

    rd_req: int = 0
    wr_req: int = 0
    f_req: int = 0
    rd_sect: int = 0
    wr_sect: int = 0
    requests: int = 0
    batches: int = 0
    notifications: int = 0
    refused: int = 0
    errors: int = 0
    flushes_failed: int = 0
    grants_mapped: int = 0
    grants_unmapped: int = 0
    grants_copied: int = 0


@dataclass(slots=True)
class _Job:
    """A request on its way.

    Attributes:
        buffers: its data, in order; the guest's own pages or one piece of the pool.
        pool_offset: where in the pool, or None if the data is mapped.
    """

    request: Request
    status: int = RSP_OKAY
    buffers: list[memoryview] = field(default_factory=list[memoryview])
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
        self._log = context.log
        self._domid = context.domid
        self._grants = grants
        self._store = store
        self._counters = counters
        self._cache: GrantCache | None = None
        if persistent:
            self._cache = GrantCache(grants, context.domid, context.name, context.deferred)
        # Pages of the pool come into being when first used.
        self._pool = LocalMemory(BATCH_LIMIT * MAX_REQUEST_BYTES)
        self._pool_view = self._pool.view()

    def execute(self, requests: Sequence[Request]) -> list[int]:
        """Carry out at most `BATCH_LIMIT` requests.  Returns the status of each.

        Nothing of a request is in flight any more when its status is known, so that a
        page may be unmapped and a response pushed.
        """
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
        for job in jobs:
            self._count(job)
        return [job.status for job in jobs]

    def close(self) -> None:
        """Unmap every data page and give the pool back."""
        if self._cache is not None:
            self._cache.close()
            self._count_grants(self._cache)
        self._pool_view.release()
        self._pool.close()

    def _place(self, jobs: Sequence[_Job]) -> None:
        """Find each request's data: mapped pages, or a piece of the pool."""
        cache = self._cache
        if cache is not None:
            cache.prepare(GrantRef(s.gref) for job in jobs for s in job.request.segments)
            self._count_grants(cache)
        offset = 0
        for job in jobs:
            size = job.request.sectors << SECTOR_SHIFT
            if size == 0 or (cache is not None and _use_mapped(job, cache)):
                continue
            job.pool_offset = offset
            job.buffers.append(self._pool_view[offset : offset + size])
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
                foreign = self._domid, GrantRef(gref), first << SECTOR_SHIFT
                here = self._pool, local
                source, target = (foreign, here) if from_guest else (here, foreign)
                segments.append(CopySegment(source, target, length))
                owners.append(job)
                local += length
        if not segments:
            return
        self._counters.grants_copied += len(segments)
        try:
            statuses = self._grants.copy(segments)
        except XenError as error:
            self._log.warning("grant copy of %d segments failed: %s", len(segments), error)
            statuses = [RSP_ERROR] * len(segments)
        for job, segment, status in zip(owners, segments, statuses, strict=True):
            if status != 0 and job.status == RSP_OKAY:
                self._log.info("grant copy failed with status %d: %r", status, segment)
                job.status = RSP_ERROR

    def _run(self, jobs: Sequence[_Job]) -> None:
        """The I/O, in order; neighbours together."""
        neighbours: list[_Job] = []
        for job in jobs:
            if job.status != RSP_OKAY:
                continue
            flush = job.request.operation == OP_FLUSH_DISKCACHE
            if neighbours and (flush or not _follows(neighbours[-1].request, job.request)):
                self._transfer(neighbours)
                neighbours = []
            if flush:
                self._flush(job)
            if job.request.sectors and job.status == RSP_OKAY:
                neighbours.append(job)
        if neighbours:
            self._transfer(neighbours)

    def _transfer(self, jobs: Sequence[_Job]) -> None:
        """One vectored read or write for requests that follow each other on the disk."""
        first = jobs[0].request
        buffers = [view for job in jobs for view in job.buffers]
        offset = first.sector << SECTOR_SHIFT
        try:
            if first.operation == OP_READ:
                self._store.readv(buffers, offset)
            else:
                self._store.writev(buffers, offset)
        except Exception as error:
            if len(jobs) > 1:
                # Which of them met the error?  To read or write the others again does no harm.
                for job in jobs:
                    self._transfer([job])
                return
            jobs[0].status = self._status_of(error, jobs[0].request)

    def _flush(self, job: _Job) -> None:
        try:
            self._store.flush()
        except Exception as error:
            self._counters.flushes_failed += 1
            job.status = self._status_of(error, job.request)

    def _status_of(self, error: Exception, request: Request) -> int:
        """An OSError's errno chooses the status; anything else is a bug of the store's.

        The log gets text, not the exception: a handler that keeps its records would keep the
        traceback, its frames and so their views of the guest's pages.
        """
        what = request.operation, request.sector, request.sectors
        if not isinstance(error, OSError):
            text = "".join(traceback.format_exception(error))
            self._log.error("operation %d at %d of %d sectors\n%s", *what, text)
            return RSP_ERROR
        self._log.warning("operation %d at %d of %d sectors: %s", *what, str(error))
        return RSP_EOPNOTSUPP if error.errno == errno.EOPNOTSUPP else RSP_ERROR

    def _count(self, job: _Job) -> None:
        counters, request = self._counters, job.request
        if request.operation == OP_READ:
            counters.rd_req += 1
        elif request.operation == OP_FLUSH_DISKCACHE:
            counters.f_req += 1
        else:
            counters.wr_req += 1
        if job.status != RSP_OKAY:
            counters.errors += 1
        elif request.operation == OP_READ:
            counters.rd_sect += request.sectors
        else:
            counters.wr_sect += request.sectors

    def _count_grants(self, cache: GrantCache) -> None:
        counters = self._counters
        counters.grants_mapped += cache.maps
        counters.grants_unmapped += cache.unmaps
        cache.maps = cache.unmaps = 0


def _follows(one: Request, other: Request) -> bool:
    """Whether `other` goes on where `one` ends, in the same direction."""
    same_direction = (one.operation == OP_READ) == (other.operation == OP_READ)
    return same_direction and one.sector + one.sectors == other.sector


def _use_mapped(job: _Job, cache: GrantCache) -> bool:
    """Point `job` at the guest's own pages.  False if one of them is not mapped."""
    for gref, first, last in job.request.segments:
        page = cache.page(GrantRef(gref))
        if page is None:
            for view in job.buffers:
                view.release()
            job.buffers.clear()
            return False
        job.buffers.append(page[first << SECTOR_SHIFT : (last + 1) << SECTOR_SHIFT])
    return True
