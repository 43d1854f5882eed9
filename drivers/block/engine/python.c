/* SPDX-License-Identifier: MIT */
/* The engine as cdef.h shows it to Python. */
#include <stddef.h>

#include "disk.h"
#include "engine.h"

#define BLOCK_POOL_BYTES (BLOCK_POOL_PAGES * 4096u)

/* cffi's, which enter Python. */
static void block_store_transfer(void *store, uint32_t count);
static int block_store_flush(void *store);
static int block_store_discard(void *store, uint64_t offset, uint64_t length);

static size_t block_state_size(void)
{
    return sizeof(struct block_state);
}

static size_t block_disk_size(void)
{
    return sizeof(struct block_disk);
}

/* Memory of ours for callbacks: the pool and behind it the calls. */
static size_t block_callbacks_size(void)
{
    return BLOCK_POOL_BYTES + BLOCK_BATCH * sizeof(struct block_call);
}

static void block_disk_start(uintptr_t disk)
{
    block_disk_init((struct block_disk *)disk);
}

static int block_disk_has_lost(uintptr_t disk)
{
    return block_has_lost((const struct block_disk *)disk);
}

static void block_disk_add(uintptr_t disk, uint64_t rd_req, uint64_t rd_sect, uint64_t wr_req,
                           uint64_t wr_sect, uint64_t errors)
{
    struct block_counters done = {
        .rd_req = rd_req, .rd_sect = rd_sect, .wr_req = wr_req, .wr_sect = wr_sect,
        .errors = errors,
    };

    block_disk_count((struct block_disk *)disk, &done);
}

static uint32_t block_engine_position(uintptr_t ring)
{
    return block_ring_start((const void *)ring);
}

/* `callbacks`: their memory, or 0 if the store is none of callbacks. */
static int block_engine_start(uintptr_t config, uintptr_t state, uintptr_t calls, uintptr_t ring,
                              uintptr_t disk, uintptr_t trace, uintptr_t callbacks, void *store)
{
    struct block_callbacks table = {
        .context = store, .pool = (uint8_t *)callbacks,
        .calls = (struct block_call *)(callbacks + BLOCK_POOL_BYTES),
        .transfer = block_store_transfer, .flush = block_store_flush,
        .discard = block_store_discard,
    };

    return block_engine_run((const void *)config, (void *)state, (const void *)calls, (void *)ring,
                            (void *)disk, (void *)trace, callbacks ? &table : NULL);
}
