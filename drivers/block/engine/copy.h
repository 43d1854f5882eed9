/* SPDX-License-Identifier: MIT */
/* Grant copy: many pieces in one call, each with a status of its own. */
#ifndef XENPY_BLOCK_COPY_H
#define XENPY_BLOCK_COPY_H

#include "batch.h"

/* The first error that a request meets is its answer.  Of all that was offered only a discard may
 * turn out not to be supported: for a flush or barrier blkfront would take that for success. */
static inline void block_fail(struct block_job *job, int error)
{
    bool unsupported = error == -EOPNOTSUPP && job->request.operation == BLOCK_OP_DISCARD;

    if (job->request.status == BLOCK_OKAY)
        job->request.status = unsupported ? BLOCK_EOPNOTSUPP : BLOCK_ERROR;
}

/* Fill in copies[number], for jobs[owner]: between `gref` and memory of ours, within a page. */
void block_copy_fill(struct block_batch *batch, uint32_t number, uint32_t owner, uint32_t gref,
                     uint32_t offset, void *local, uint32_t length, bool from_guest);

/* Carry out copies[0] to copies[count - 1] in one call.  A piece that fails fails its job, and no
 * other. */
void block_copy_all(struct block_batch *batch, uint32_t count);

/* The pooled data of jobs `first` up to `end`: into the pool for writes, or out of it for reads. */
void block_copy_data(struct block_batch *batch, uint32_t first, uint32_t end, bool from_guest);

#endif /* XENPY_BLOCK_COPY_H */
