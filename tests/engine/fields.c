/* SPDX-License-Identifier: MIT */
/* Prints NAME OFFSET SIZE of each field that Python packs or reads. */
#include <stddef.h>
#include <stdio.h>

#include "engine.h"

#define SHOW(type, field) \
    printf(#type "." #field " %zu %zu\n", offsetof(struct type, field), \
           sizeof(((struct type *)0)->field))

int main(void)
{
    SHOW(block_config, version);
    SHOW(block_config, size);
    SHOW(block_config, domid);
    SHOW(block_config, port);
    SHOW(block_config, abi);
    SHOW(block_config, ring_pages);
    SHOW(block_config, flags);
    SHOW(block_config, max_indirect);
    SHOW(block_config, max_mapped);
    SHOW(block_config, batch);
    SHOW(block_config, start);
    SHOW(block_config, store_kind);
    SHOW(block_config, store_fd);
    SHOW(block_config, stop_fd);
    SHOW(block_config, sector_size);
    SHOW(block_config, padding);
    SHOW(block_config, store_size);
    SHOW(block_state, version);
    SHOW(block_state, size);
    SHOW(block_state, sectors);
    SHOW(block_state, stop);
    SHOW(block_state, counters);
    SHOW(block_counters, rd_req);
    SHOW(block_counters, wr_req);
    SHOW(block_counters, f_req);
    SHOW(block_counters, ds_req);
    SHOW(block_counters, rd_sect);
    SHOW(block_counters, wr_sect);
    SHOW(block_counters, ds_sect);
    SHOW(block_counters, requests);
    SHOW(block_counters, indirect);
    SHOW(block_counters, batches);
    SHOW(block_counters, wakeups);
    SHOW(block_counters, notifications);
    SHOW(block_counters, refused);
    SHOW(block_counters, errors);
    SHOW(block_counters, flushes_failed);
    SHOW(block_counters, grants_mapped);
    SHOW(block_counters, grants_unmapped);
    SHOW(block_counters, grants_copied);
    SHOW(block_worker, config);
    SHOW(block_worker, remote_port);
    SHOW(block_worker, refs);
    printf("block_worker - %zu\n", sizeof(struct block_worker));
    printf("block_config - %zu\nblock_counters - %zu\n", sizeof(struct block_config),
           sizeof(struct block_counters));
    return 0;
}
