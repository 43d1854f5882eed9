/* SPDX-License-Identifier: MIT */
/*
 * What holds a disk's bytes, for the native engine.
 *
 * A store carries out all transfers of a batch in one call and returns when they have ended, in
 * whatever order and with whatever parallelism it likes: blkif promises none among them.
 */
#ifndef XENPY_BLOCK_STORE_H
#define XENPY_BLOCK_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"
#include "mapped.h"
#include "transfer.h"

struct block_store {
    const struct block_store_calls *calls;
    int fd;
    struct block_disk *disk;
    uint64_t size;
    uint32_t block;             /* of a block device: what it changes in one piece; else 0 */
    uint8_t *address;           /* of a memory store */
    bool moves_nothing;         /* a transfer of a null store leaves the pages as they are */
    const struct block_callbacks *callbacks; /* of a store of callbacks, else NULL */
    struct block_mapped mapped; /* of a file that is read through a mapping */
};

struct block_store_calls {
    /* Every transfer has its result when it returns. */
    void (*transfer)(struct block_store *store, struct block_transfer *transfers, uint32_t count);
    /* 0 when all that was written before is on stable storage, else -errno. */
    int (*flush)(struct block_store *store);
    /* -EOPNOTSUPP if the store cannot. */
    int (*discard)(struct block_store *store, uint64_t offset, uint64_t length);
    void (*close)(struct block_store *store);
};

/* Returns 0 or -errno; the descriptor stays the caller's. */
int block_store_open(struct block_store *store, const struct block_config *config,
                     struct block_disk *disk, const struct block_callbacks *callbacks);

#endif /* XENPY_BLOCK_STORE_H */
