/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <xen/grant_table.h>

#include "copy.h"

#define PAGED_OUT_TRIES 8 /* after 1, 2, 4 ... 128 ms: a quarter of a second, as Linux's own */

void block_copy_fill(struct block_batch *batch, uint32_t number, uint32_t owner, uint32_t gref,
                     uint32_t offset, void *local, uint32_t length, bool from_guest)
{
    xengnttab_grant_copy_segment_t *copy = &batch->copies[number];

    batch->owners[number] = owner;
    if (from_guest)
        xenpy_copy_from_guest(copy, batch->domid, gref, offset, local, length);
    else
        xenpy_copy_to_guest(copy, batch->domid, gref, offset, local, length);
    copy->status = GNTST_general_error;
}

/* Those whose page is paged out again, all of them after each pause: a frontend with many such
 * pages holds up a stop no longer than one with a single one. */
static void retry_paged_out(struct block_batch *batch, uint32_t count)
{
    struct timespec pause = { .tv_nsec = 1000000 };
    uint32_t tries, left, i;

    for (tries = 0; tries <= PAGED_OUT_TRIES; tries++) {
        for (left = 0, i = 0; i < count; i++) {
            if (batch->copies[i].status != GNTST_eagain)
                continue;
            left++;
            /* What a call that failed as a whole leaves in a status means nothing. */
            if (tries && batch->calls->copy(batch->calls->grants, 1, &batch->copies[i]) < 0)
                batch->copies[i].status = GNTST_general_error;
        }
        if (!left)
            return;
        nanosleep(&pause, NULL);
        pause.tv_nsec *= 2;
    }
}

/* One call for all; a segment that fails fails its request, and no other. */
void block_copy_all(struct block_batch *batch, uint32_t count)
{
    uint32_t i;

    if (count == 0)
        return;
    block_count(&batch->counters->grants_copied, count);
    if (batch->calls->copy(batch->calls->grants, count, batch->copies) < 0) {
        for (i = 0; i < count; i++)
            block_fail(&batch->jobs[batch->owners[i]], -EIO);
        return;
    }
    retry_paged_out(batch, count);
    for (i = 0; i < count; i++) {
        if (batch->copies[i].status != GNTST_okay)
            block_fail(&batch->jobs[batch->owners[i]], -EIO);
    }
}

void block_copy_data(struct block_batch *batch, uint32_t first, uint32_t end, bool from_guest)
{
    uint32_t number = 0, i, n;

    for (i = first; i < end; i++) {
        struct block_job *job = &batch->jobs[i];
        const struct block_request *request = &job->request;
        uint8_t *local = batch->pool + job->pool_offset;

        if (!job->pooled || request->status != BLOCK_OKAY ||
            (request->operation == BLOCK_OP_READ) == from_guest)
            continue;
        for (n = 0; n < request->nr_segments; n++) {
            const struct block_segment *segment = &request->segments[n];
            uint32_t offset = (uint32_t)segment->first << BLOCK_SECTOR_SHIFT;
            uint32_t length = (segment->last - segment->first + 1u) << BLOCK_SECTOR_SHIFT;
            uint8_t *page = batch->persistent
                                ? grant_cache_address(&batch->cache, segment->page) : NULL;

            if (!page)
                block_copy_fill(batch, number++, i, segment->gref, offset, local, length,
                                from_guest);
            else if (from_guest)
                memcpy(local, page + offset, length);
            else
                memcpy(page + offset, local, length);
            local += length;
        }
    }
    block_copy_all(batch, number);
}
