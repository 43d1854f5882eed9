/* SPDX-License-Identifier: MIT */
/* A store of callbacks over a descriptor. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine.h"

struct callback_disk {
    struct block_callbacks callbacks;
    int fd;
};

static void call_transfer(void *context, uint32_t count)
{
    struct callback_disk *disk = context;
    uint32_t i;

    check(count >= 1 && count <= BLOCK_BATCH);
    /* Backwards: blkif promises no order. */
    for (i = count; i-- > 0;) {
        struct block_call *call = &disk->callbacks.calls[i];
        uint8_t *data = disk->callbacks.pool + call->place;
        ssize_t done;

        check(call->result == -EIO && call->length && call->place % 4096 == 0);
        check(call->place + (uint64_t)call->length <= BLOCK_POOL_PAGES * 4096u);
        done = call->write ? pwrite(disk->fd, data, call->length, (off_t)call->offset)
                           : pread(disk->fd, data, call->length, (off_t)call->offset);
        if (done == (ssize_t)call->length)
            call->result = 0;
    }
}

static int call_flush(void *context)
{
    return fdatasync(((struct callback_disk *)context)->fd) < 0 ? -errno : 0;
}

static int call_discard(void *context, uint64_t offset, uint64_t length)
{
    int how = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, fd = ((struct callback_disk *)context)->fd;

    return fallocate(fd, how, (off_t)offset, (off_t)length) < 0 ? -errno : 0;
}

static inline struct block_callbacks *callbacks_open(int fd)
{
    struct callback_disk *disk = calloc(1, sizeof(*disk));

    check(disk);
    disk->fd = fd;
    disk->callbacks = (struct block_callbacks){
        .context = disk, .pool = aligned_alloc(4096, BLOCK_POOL_PAGES * 4096u),
        .calls = calloc(BLOCK_BATCH, sizeof(struct block_call)),
        .transfer = call_transfer, .flush = call_flush, .discard = call_discard,
    };
    check(disk->callbacks.pool && disk->callbacks.calls);
    return &disk->callbacks;
}

static inline void callbacks_close(struct block_callbacks *callbacks)
{
    free(callbacks->pool);
    free(callbacks->calls);
    free(callbacks->context);
}
