/* SPDX-License-Identifier: MIT */
/* A read or write of bytes that follow each other on the disk. */
#ifndef XENPY_BLOCK_TRANSFER_H
#define XENPY_BLOCK_TRANSFER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct block_transfer {
    struct iovec *iov; /* the store may change it */
    uint32_t count;
    bool write;
    int16_t result; /* 0 or -errno; -EIO too for what lies beyond the end of the store */
    uint32_t first, last; /* the requests that it is for: the engine's */
    uint64_t offset, length; /* bytes */
};

#endif /* XENPY_BLOCK_TRANSFER_H */
