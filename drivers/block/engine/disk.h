/* SPDX-License-Identifier: MIT */
/* What the queues of a disk do together: flush, one at a time, and forget no flush that failed;
 * and count for xentop. */
#ifndef XENPY_BLOCK_DISK_H
#define XENPY_BLOCK_DISK_H

#include "store.h"

/* Returns 0 when all that was written before is on stable storage; else -errno, now and ever. */
int block_flush_once(struct block_store *store);

/*
 * Whether a flush has failed.  Nothing is written any more then: Linux's blkfront takes a FLUSH
 * that fails for one that is not supported, sends no other, and would never hear of the loss.
 */
static inline bool block_has_lost(const struct block_disk *disk)
{
    return __atomic_load_n(&disk->lost, __ATOMIC_RELAXED) != 0;
}

/* Add what a batch has done. */
void block_disk_count(struct block_disk *disk, const struct block_counters *done);

#endif /* XENPY_BLOCK_DISK_H */
