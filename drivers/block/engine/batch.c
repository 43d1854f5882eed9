/* SPDX-License-Identifier: MIT */
/*
 * The frontend's data comes and goes in one of two ways.  Pages that it keeps granted are mapped
 * (grant_cache) and the store reads and writes them directly.  All others pass through a pool of
 * ours by grant copy, one call in and one call out.  A store of callbacks sees the pool alone, into
 * and out of which mapped pages are copied.  The frontend's memory never decides anything here:
 * sizes and places come from the checked request alone.
 */
#include <errno.h>
#include <stdint.h>

#include <xenpy/ring_core.h>

#include "batch.h"
#include "copy.h"
#include "disk.h"

/* Of a slot: none to all of them. */
#define ANY_SEGMENTS ((2u << BLOCK_DIRECT_SEGMENTS) - 1)

int block_batch_open(struct block_batch *batch, const struct block_config *config,
                     const struct xenpy_calls *calls, struct block_counters *counters,
                     struct block_disk *disk, const struct block_callbacks *callbacks)
{
    uint32_t i;
    int failed;

    for (i = 0; i < BLOCK_BATCH; i++)
        batch->jobs[i].request.segments = batch->segments[i];
    batch->calls = calls;
    batch->counters = counters;
    batch->domid = config->domid;
    batch->persistent = config->flags & BLOCK_PERSISTENT;
    batch->limits = (struct block_limits){
        .abi = config->abi, .flags = config->flags, .max_indirect = config->max_indirect,
        .fraction = (config->sector_size >> BLOCK_SECTOR_SHIFT) - 1,
        .direct = {
            [BLOCK_OP_READ] = ANY_SEGMENTS & ~1u, [BLOCK_OP_WRITE] = ANY_SEGMENTS & ~1u,
            [BLOCK_OP_BARRIER] = config->flags & BLOCK_BARRIER ? ANY_SEGMENTS : 0,
            [BLOCK_OP_FLUSH] = ANY_SEGMENTS,
        },
    };
    failed = block_store_open(&batch->store, config, disk, callbacks);
    if (failed)
        return failed;
    batch->pool = batch->store.callbacks ? batch->store.callbacks->pool : &batch->room[0][0];
    failed = grant_cache_open(&batch->cache, calls, config->domid,
                              batch->persistent ? config->max_mapped : 0);
    if (failed)
        batch->store.calls->close(&batch->store);
    return failed;
}

/* ------------------------------------------------------- indirect requests */

static void want_segments(struct block_batch *batch, struct block_request *request)
{
    uint32_t n;

    for (n = 0; n < request->nr_segments; n++)
        request->segments[n].page = grant_cache_want(&batch->cache, request->segments[n].gref);
}

/* Have a private copy of each request's indirect page, and check the segments in it (XSA-155). */
static void fetch_indirect(struct block_batch *batch, uint32_t count)
{
    uint32_t pages[BLOCK_BATCH] = { 0 }, copies = 0, i;

    for (i = 0; i < count && batch->persistent; i++) {
        const struct block_request *request = &batch->jobs[i].request;

        if (request->indirect && request->status == BLOCK_OKAY)
            pages[i] = grant_cache_want(&batch->cache, request->indirect_gref);
    }
    grant_cache_settle(&batch->cache);
    for (i = 0; i < count; i++) {
        const struct block_request *request = &batch->jobs[i].request;
        uint32_t length = request->nr_segments * BLOCK_SEGMENT_BYTES;
        const uint8_t *mapped = NULL;

        if (!request->indirect || request->status != BLOCK_OKAY)
            continue;
        if (batch->persistent)
            mapped = grant_cache_address(&batch->cache, pages[i]);
        if (mapped)
            xenpy_copy_once(batch->indirect[i], mapped, length);
        else
            block_copy_fill(batch, copies++, i, request->indirect_gref, 0, batch->indirect[i],
                            length, true);
    }
    block_copy_all(batch, copies);
    for (i = 0; i < count; i++) {
        struct block_request *request = &batch->jobs[i].request;

        if (!request->indirect)
            continue;
        if (request->status == BLOCK_OKAY)
            block_parse_segments(&batch->limits, request, batch->indirect[i]);
        batch->jobs[i].refused = request->status != BLOCK_OKAY;
    }
}

/* ------------------------------------------------------- placing data */

/* Point the request's iov at the frontend's own pages.  False if one of them is not mapped. */
static bool use_mapped(struct block_batch *batch, struct block_job *job)
{
    const struct block_request *request = &job->request;
    struct iovec *iov = &batch->iov[job->iov];
    const uint8_t *end = NULL;
    uint32_t n;

    job->iovs = 0;
    for (n = 0; n < request->nr_segments; n++) {
        const struct block_segment *segment = &request->segments[n];
        uint8_t *page = grant_cache_address(&batch->cache, segment->page);
        uint32_t length = (segment->last - segment->first + 1u) << BLOCK_SECTOR_SHIFT;

        if (!page)
            return false;
        page += (uint32_t)segment->first << BLOCK_SECTOR_SHIFT;
        if (page == end) {
            /* Neighbours in our address space; the machine's own frames may lie anywhere
             * (XSA-229), which does not matter to a system call. */
            iov[job->iovs - 1].iov_len += length;
        } else {
            iov[job->iovs++] = (struct iovec){ .iov_base = page, .iov_len = length };
        }
        end = page + length;
    }
    return true;
}

static void use_pool(struct block_batch *batch, struct block_job *job)
{
    job->iovs = 1;
    batch->iov[job->iov] = (struct iovec){
        .iov_base = batch->pool + job->pool_offset,
        .iov_len = job->request.sectors << BLOCK_SECTOR_SHIFT,
    };
}

/* Find the data of as many jobs as the pool has room for.  Returns the first that is left. */
static uint32_t place(struct block_batch *batch, uint32_t first, uint32_t count)
{
    uint32_t i, iov = 0, pages = 0;

    batch->pooled = false;
    if (batch->store.moves_nothing)
        return count;
    for (i = first; i < count; i++) {
        struct block_job *job = &batch->jobs[i];
        uint32_t needed = (uint32_t)((job->request.sectors + 7) >> 3);

        job->iov = iov;
        job->iovs = 0;
        job->pooled = false;
        if (job->request.status != BLOCK_OKAY || !job->request.nr_segments)
            continue;
        if (!batch->persistent || batch->store.callbacks || !use_mapped(batch, job)) {
            if (pages + needed > BLOCK_POOL_PAGES)
                return i;
            batch->pooled = job->pooled = true;
            job->pool_offset = pages * BLOCK_PAGE;
            /* The next one starts on a page of its own. */
            pages += needed;
            use_pool(batch, job);
        }
        iov += job->iovs;
    }
    return count;
}

/* ------------------------------------------------------- the I/O */

/* One job's data as a transfer. */
static struct block_transfer transfer_of(struct block_batch *batch, uint32_t number)
{
    const struct block_job *job = &batch->jobs[number];

    return (struct block_transfer){
        .iov = &batch->iov[job->iov], .count = job->iovs,
        .write = job->request.operation != BLOCK_OP_READ, .first = number, .last = number,
        .offset = job->request.sector << BLOCK_SECTOR_SHIFT,
        .length = job->request.sectors << BLOCK_SECTOR_SHIFT,
    };
}

/* Carry out what waits.  Where several requests went together and failed: which of them met the
 * error?  To read or write the others again does no harm. */
static void run_waiting(struct block_batch *batch)
{
    struct block_store *store = &batch->store;
    uint32_t i, n, count = batch->waiting;

    if (count == 0)
        return;
    batch->waiting = 0;
    store->calls->transfer(store, batch->transfers, count);
    for (i = 0; i < count; i++) {
        const struct block_transfer *whole = &batch->transfers[i];

        if (whole->result == 0)
            continue;
        if (whole->first == whole->last) {
            block_fail(&batch->jobs[whole->first], whole->result);
            continue;
        }
        for (n = whole->first; n <= whole->last; n++) {
            struct block_job *job = &batch->jobs[n];
            struct block_transfer one;

            /* The store may have changed its iov. */
            if (job->pooled)
                use_pool(batch, job);
            else
                use_mapped(batch, job);
            one = transfer_of(batch, n);
            store->calls->transfer(store, &one, 1);
            if (one.result)
                block_fail(job, one.result);
        }
    }
}

/* Whether `other` can become part of `one`. */
static bool goes_on(const struct block_store *store, const struct block_transfer *one,
                    const struct block_transfer *other)
{
    if (one->write != other->write || one->last + 1 != other->first ||
        one->offset + one->length != other->offset)
        return false;
    /* A callback is given one piece of memory. */
    return !store->callbacks ||
           (uint8_t *)one->iov->iov_base + one->length == (uint8_t *)other->iov->iov_base;
}

/* Add a job to what waits; one that goes on where the last one ends becomes part of it. */
static void wait_for(struct block_batch *batch, uint32_t number)
{
    struct block_transfer one = transfer_of(batch, number);

    if (batch->waiting) {
        struct block_transfer *last = &batch->transfers[batch->waiting - 1];

        if (goes_on(&batch->store, last, &one)) {
            last->count += one.count;
            last->length += one.length;
            last->last = number;
            return;
        }
    }
    batch->transfers[batch->waiting++] = one;
}

static int flush(struct block_batch *batch)
{
    int result = block_flush_once(&batch->store);

    if (result)
        block_count(&batch->counters->flushes_failed, 1);
    return result;
}

/* What keeps an order: a flush comes after everything before it in the ring, and a barrier's
 * write is between two of them.  A FLUSH that carries segments is served as blkback and QEMU do:
 * first the flush, then the write. */
static void run_ordered(struct block_batch *batch, uint32_t number)
{
    struct block_job *job = &batch->jobs[number];
    const struct block_request *request = &job->request;
    int failed;

    run_waiting(batch);
    if (request->operation == BLOCK_OP_DISCARD)
        failed = batch->store.calls->discard(&batch->store, request->sector << BLOCK_SECTOR_SHIFT,
                                             request->sectors << BLOCK_SECTOR_SHIFT);
    else
        failed = flush(batch);
    if (failed) {
        block_fail(job, failed);
        return;
    }
    if (!request->nr_segments)
        return;
    wait_for(batch, number);
    if (request->operation != BLOCK_OP_BARRIER)
        return;
    run_waiting(batch);
    failed = request->status == BLOCK_OKAY ? flush(batch) : 0;
    if (failed)
        block_fail(job, failed);
}

static void run(struct block_batch *batch, uint32_t first, uint32_t end)
{
    uint32_t i;

    for (i = first; i < end; i++) {
        const struct block_request *request = &batch->jobs[i].request;

        if (request->status != BLOCK_OKAY)
            continue;
        if (request->operation > BLOCK_OP_WRITE)
            run_ordered(batch, i);
        else if (request->operation == BLOCK_OP_WRITE && block_has_lost(batch->store.disk))
            block_fail(&batch->jobs[i], -EIO);
        else if (!batch->store.moves_nothing)
            wait_for(batch, i);
    }
    run_waiting(batch);
}

/* ------------------------------------------------------- counting */

static void count_one(struct block_counters *done, const struct block_job *job)
{
    const struct block_request *request = &job->request;
    bool okay = request->status == BLOCK_OKAY;
    uint64_t sectors = okay ? request->sectors : 0;

    /* What most are. */
    if (request->operation == BLOCK_OP_READ && !request->indirect && okay) {
        done->rd_req++;
        done->rd_sect += request->sectors;
        return;
    }
    done->indirect += request->indirect;
    done->errors += !okay;
    done->refused += job->refused;
    if (job->refused)
        return;
    switch (request->operation) {
    case BLOCK_OP_READ:
        done->rd_req++;
        done->rd_sect += sectors;
        return;
    case BLOCK_OP_FLUSH:
    case BLOCK_OP_BARRIER: /* as blkback counts it */
        done->f_req++;
        done->wr_sect += sectors;
        return;
    case BLOCK_OP_DISCARD:
        done->ds_req++;
        done->ds_sect += sectors;
        return;
    default:
        done->wr_req++;
        done->wr_sect += sectors;
    }
}

/* Summed up first: what others look at is touched once for a batch. */
static void count_jobs(struct block_batch *batch, uint32_t jobs)
{
    struct block_counters *counters = batch->counters, done = { 0 };
    uint32_t i;

    for (i = 0; i < jobs; i++)
        count_one(&done, &batch->jobs[i]);
    block_count(&counters->rd_req, done.rd_req);
    block_count(&counters->wr_req, done.wr_req);
    block_count(&counters->f_req, done.f_req);
    block_count(&counters->ds_req, done.ds_req);
    block_count(&counters->rd_sect, done.rd_sect);
    block_count(&counters->wr_sect, done.wr_sect);
    block_count(&counters->ds_sect, done.ds_sect);
    block_count(&counters->indirect, done.indirect);
    block_count(&counters->refused, done.refused);
    block_count(&counters->errors, done.errors);
    block_disk_count(batch->store.disk, &done);
}

static void count_grants(struct block_batch *batch)
{
    block_count(&batch->counters->grants_mapped, batch->cache.maps);
    block_count(&batch->counters->grants_unmapped, batch->cache.unmaps);
    batch->cache.maps = batch->cache.unmaps = 0;
}

void block_batch_run(struct block_batch *batch, uint32_t count)
{
    bool indirect = false;
    uint32_t first, next, i;

    grant_cache_begin(&batch->cache);
    for (i = 0; i < count; i++) {
        struct block_job *job = &batch->jobs[i];

        indirect |= job->request.indirect;
        job->refused = job->request.status != BLOCK_OKAY;
    }
    if (indirect)
        fetch_indirect(batch, count);
    for (i = 0; i < count && batch->persistent; i++) {
        if (!batch->jobs[i].refused)
            want_segments(batch, &batch->jobs[i].request);
    }
    grant_cache_settle(&batch->cache);
    for (first = 0; first < count; first = next) {
        next = place(batch, first, count);
        if (batch->pooled)
            block_copy_data(batch, first, next, true);
        run(batch, first, next);
        if (batch->pooled)
            block_copy_data(batch, first, next, false);
    }
    count_jobs(batch, count);
    count_grants(batch);
}

int block_batch_close(struct block_batch *batch)
{
    int failed = grant_cache_close(&batch->cache);

    count_grants(batch);
    batch->store.calls->close(&batch->store);
    return failed;
}
