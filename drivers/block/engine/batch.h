/* SPDX-License-Identifier: MIT */
/* All requests of one wake-up, from checked request to status. */
#ifndef XENPY_BLOCK_BATCH_H
#define XENPY_BLOCK_BATCH_H

#include <xenpy/calls.h>

#include "grant_cache.h"
#include "request.h"
#include "store.h"

#define BLOCK_BATCH_SEGMENTS (BLOCK_BATCH * BLOCK_INDIRECT_SEGMENTS)

_Static_assert(BLOCK_INDIRECT_SEGMENTS * BLOCK_SEGMENT_BYTES <= BLOCK_PAGE, "one page of segments");

struct block_job {
    struct block_request request;
    uint32_t iov, iovs;   /* its data in the batch's iov */
    uint32_t pool_offset; /* where its data is in the pool, if `pooled` */
    bool pooled;
    bool refused; /* answered without being tried */
};

/* Mapped, not allocated: pages of it come into being when they are first used. */
struct block_batch {
    const struct xenpy_calls *calls;
    struct block_counters *counters;
    struct block_limits limits;
    uint32_t domid;
    bool persistent;
    struct grant_cache cache;
    struct block_store store;
    uint8_t *pool;    /* BLOCK_POOL_PAGES: room of ours, or the callbacks' */
    bool pooled;      /* data of the jobs that are placed is there */
    uint32_t waiting; /* transfers to be carried out */
    struct block_transfer transfers[BLOCK_BATCH];
    struct block_job jobs[BLOCK_BATCH];
    struct block_segment segments[BLOCK_BATCH][BLOCK_INDIRECT_SEGMENTS];
    struct iovec iov[BLOCK_BATCH_SEGMENTS];
    xengnttab_grant_copy_segment_t copies[BLOCK_BATCH_SEGMENTS];
    uint32_t owners[BLOCK_BATCH_SEGMENTS]; /* the job of each copy */
    uint8_t indirect[BLOCK_BATCH][BLOCK_PAGE] __attribute__((aligned(4096)));
    uint8_t room[BLOCK_POOL_PAGES][BLOCK_PAGE] __attribute__((aligned(4096)));
};

/* One writer; whoever looks reads whole numbers. */
static inline void block_count(uint64_t *counter, uint64_t more)
{
    __atomic_store_n(counter, *counter + more, __ATOMIC_RELAXED);
}

int block_batch_open(struct block_batch *batch, const struct block_config *config,
                     const struct xenpy_calls *calls, struct block_counters *counters,
                     struct block_disk *disk, const struct block_callbacks *callbacks);

/*
 * Carry out jobs[0] to jobs[count - 1], which hold parsed requests.  When it returns each has its
 * status, and no I/O on the frontend's pages is in flight.
 */
void block_batch_run(struct block_batch *batch, uint32_t count);

/* Returns 0, or -errno if a data page could not be unmapped. */
int block_batch_close(struct block_batch *batch);

#endif /* XENPY_BLOCK_BATCH_H */
