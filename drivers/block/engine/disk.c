/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>

#include "disk.h"

void block_disk_init(struct block_disk *disk)
{
    pthread_mutexattr_t attributes;

    memset(disk, 0, sizeof(*disk));
    disk->xentop.version = BLOCK_XENTOP_VERSION;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    /* A process may be killed in the middle of its flush. */
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&disk->flushing, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

static void set_lost(struct block_disk *disk, uint32_t number)
{
    uint32_t *where = &disk->lost;

    __atomic_store_n(where, number, __ATOMIC_RELAXED);
}

int block_flush_once(struct block_store *store)
{
    struct block_disk *disk = store->disk;
    int result = pthread_mutex_lock(&disk->flushing);

    if (result == EOWNERDEAD) {
        /* It may have been told of a lost write, and has told nobody. */
        set_lost(disk, EIO);
        pthread_mutex_consistent(&disk->flushing);
    } else if (result) {
        return -result;
    }
    result = disk->lost ? -(int)disk->lost : store->calls->flush(store);
    if (result)
        set_lost(disk, (uint32_t)-result);
    pthread_mutex_unlock(&disk->flushing);
    return result;
}

static void add(uint64_t *figure, uint64_t more)
{
    /* Most of a batch is of one kind, and a locked addition is not free. */
    if (more)
        __atomic_fetch_add(figure, more, __ATOMIC_RELAXED);
}

void block_disk_count(struct block_disk *disk, const struct block_counters *done)
{
    struct block_xentop *xentop = &disk->xentop;

    add(&xentop->read_reqs_submitted, done->rd_req);
    add(&xentop->read_reqs_completed, done->rd_req);
    add(&xentop->read_sectors, done->rd_sect);
    add(&xentop->write_reqs_submitted, done->wr_req);
    add(&xentop->write_reqs_completed, done->wr_req);
    add(&xentop->write_sectors, done->wr_sect);
    add(&xentop->io_errors, done->errors);
}
