/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store.h"

#define IOV_LIMIT 1024u /* UIO_MAXIOV */

/* ------------------------------------------------------- a file or a block device */

static int file_transfer_one(int fd, struct block_transfer *transfer)
{
    struct iovec *iov = transfer->iov;
    uint32_t left = transfer->count;
    off_t offset = (off_t)transfer->offset;

    while (left) {
        int some = (int)(left < IOV_LIMIT ? left : IOV_LIMIT);
        ssize_t done = transfer->write ? pwritev(fd, iov, some, offset)
                                       : preadv(fd, iov, some, offset);

        if (done < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        /* The file was cut off under us.  To answer with zeros would be a lie. */
        if (done == 0)
            return -EIO;
        offset += done;
        for (; left && (size_t)done >= iov->iov_len; iov++, left--)
            done -= (ssize_t)iov->iov_len;
        if (done) {
            iov->iov_base = (uint8_t *)iov->iov_base + done;
            iov->iov_len -= (size_t)done;
        }
    }
    return 0;
}

static void file_transfer(struct block_store *store, struct block_transfer *transfers,
                          uint32_t count)
{
    uint32_t i;

    if (store->mapped.fills_holes && __atomic_load_n(&store->disk->punched, __ATOMIC_ACQUIRE))
        block_mapped_close(&store->mapped);
    for (i = 0; i < count; i++) {
        struct block_transfer *one = &transfers[i];
        int result = block_mapped_covers(&store->mapped, one)
                         ? block_mapped_read(&store->mapped, store->fd, one)
                         : -ENOMEM;

        if (result == -ENOMEM)
            result = file_transfer_one(store->fd, one);

        one->result = (int16_t)result;
    }
}

static int file_flush(struct block_store *store)
{
    int result;

    do
        result = fdatasync(store->fd);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}

/* Whole blocks only; a frontend's sectors may be smaller. */
static int device_discard(struct block_store *store, uint64_t offset, uint64_t length)
{
    uint64_t start = (offset + store->block - 1) / store->block * store->block;
    uint64_t end = (offset + length) / store->block * store->block;
    uint64_t range[] = { start, end - start };

    return start >= end || ioctl(store->fd, BLKDISCARD, range) == 0 ? 0 : -errno;
}

static int file_discard(struct block_store *store, uint64_t offset, uint64_t length)
{
    int result;

    if (store->block)
        return device_discard(store, offset, length);
    /* Before there is a hole: all queues leave their mappings of a tmpfs then. */
    __atomic_store_n(&store->disk->punched, 1, __ATOMIC_RELEASE);
    do
        result = fallocate(store->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                           (off_t)length);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}

static void file_close(struct block_store *store)
{
    block_mapped_close(&store->mapped);
}

static const struct block_store_calls file_calls = {
    .transfer = file_transfer, .flush = file_flush, .discard = file_discard, .close = file_close,
};

/* ------------------------------------------------------- memory: a memfd, mapped */

static void memory_transfer(struct block_store *store, struct block_transfer *transfers,
                            uint32_t count)
{
    uint32_t i, n;

    for (i = 0; i < count; i++) {
        uint8_t *at = store->address + transfers[i].offset;

        for (n = 0; n < transfers[i].count; n++) {
            struct iovec *iov = &transfers[i].iov[n];

            if (transfers[i].write)
                memcpy(at, iov->iov_base, iov->iov_len);
            else
                memcpy(iov->iov_base, at, iov->iov_len);
            at += iov->iov_len;
        }
        transfers[i].result = 0;
    }
}

static int no_flush(struct block_store *store)
{
    (void)store;
    return 0;
}

static void memory_close(struct block_store *store)
{
    munmap(store->address, store->size);
}

static const struct block_store_calls memory_calls = {
    .transfer = memory_transfer, .flush = no_flush, .discard = file_discard, .close = memory_close,
};

/* ------------------------------------------------------- null */

static void null_transfer(struct block_store *store, struct block_transfer *transfers,
                          uint32_t count)
{
    uint32_t i;

    (void)store;
    for (i = 0; i < count; i++)
        transfers[i].result = 0;
}

static int null_discard(struct block_store *store, uint64_t offset, uint64_t length)
{
    (void)store, (void)offset, (void)length;
    return 0;
}

static void nothing(struct block_store *store)
{
    (void)store;
}

static const struct block_store_calls null_calls = {
    .transfer = null_transfer, .flush = no_flush, .discard = null_discard, .close = nothing,
};

/* ------------------------------------------------------- callbacks */

static int checked(int result)
{
    return result <= 0 && result >= -4095 ? result : -EIO;
}

static void callback_transfer(struct block_store *store, struct block_transfer *transfers,
                              uint32_t count)
{
    const struct block_callbacks *callbacks = store->callbacks;
    struct block_call *call;
    uint32_t i;

    for (i = 0; i < count; i++)
        callbacks->calls[i] = (struct block_call){
            .offset = transfers[i].offset, .length = (uint32_t)transfers[i].length,
            .place = (uint32_t)((uint8_t *)transfers[i].iov->iov_base - callbacks->pool),
            .write = transfers[i].write, .result = -EIO,
        };
    callbacks->transfer(callbacks->context, count);
    for (i = 0, call = callbacks->calls; i < count; i++, call++)
        transfers[i].result = (int16_t)checked(call->result);
}

static int callback_flush(struct block_store *store)
{
    return checked(store->callbacks->flush(store->callbacks->context));
}

static int callback_discard(struct block_store *store, uint64_t offset, uint64_t length)
{
    return checked(store->callbacks->discard(store->callbacks->context, offset, length));
}

static const struct block_store_calls callback_calls = {
    .transfer = callback_transfer, .flush = callback_flush, .discard = callback_discard,
    .close = nothing,
};

int block_store_open(struct block_store *store, const struct block_config *config,
                     struct block_disk *disk, const struct block_callbacks *callbacks)
{
    struct stat status;

    *store = (struct block_store){ .fd = config->store_fd, .size = config->store_size,
                                   .disk = disk };
    switch (config->store_kind) {
    case BLOCK_STORE_FILE:
        store->calls = &file_calls;
        if (fstat(store->fd, &status) < 0 ||
            (S_ISBLK(status.st_mode) && ioctl(store->fd, BLKPBSZGET, &store->block) < 0))
            return -errno;
        if (config->flags & BLOCK_MAPPED)
            block_mapped_open(&store->mapped, store->fd, store->size);
        return 0;
    case BLOCK_STORE_MEMORY:
        store->address = mmap(NULL, store->size, PROT_READ | PROT_WRITE, MAP_SHARED, store->fd, 0);
        if (store->address == MAP_FAILED)
            return -errno;
        store->calls = &memory_calls;
        return 0;
    case BLOCK_STORE_NULL:
        store->calls = &null_calls;
        store->moves_nothing = true;
        return 0;
    case BLOCK_STORE_CALLBACK:
        if (!callbacks)
            return -EINVAL;
        store->calls = &callback_calls;
        store->callbacks = callbacks;
        return 0;
    default:
        return -EINVAL;
    }
}
