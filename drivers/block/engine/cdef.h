/* SPDX-License-Identifier: MIT */
/* What Python calls; addresses are numbers, so that no C value passes between two extensions. */
#define BLOCK_VERSION ...
#define BLOCK_POOL_BYTES ...
size_t block_state_size(void);
size_t block_disk_size(void);
size_t block_callbacks_size(void);
void block_disk_start(uintptr_t disk);
int block_disk_has_lost(uintptr_t disk);
void block_disk_add(uintptr_t disk, uint64_t rd_req, uint64_t rd_sect, uint64_t wr_req,
                    uint64_t wr_sect, uint64_t errors);
uint32_t block_engine_position(uintptr_t ring);
int block_engine_start(uintptr_t config, uintptr_t state, uintptr_t calls, uintptr_t ring,
                       uintptr_t disk, uintptr_t trace, uintptr_t callbacks, void *store);
/* What the engine calls, of a store in Python. */
extern "Python" {
    void block_store_transfer(void *store, uint32_t count);
    int block_store_flush(void *store);
    int block_store_discard(void *store, uint64_t offset, uint64_t length);
}
