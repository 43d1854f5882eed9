/* SPDX-License-Identifier: MIT */
/*
 * A file read through a mapping: what is in the page cache is copied without a system call.
 *
 * For a process of its own: a file that was cut off is a SIGBUS, whose handler belongs to the
 * whole process.
 */
#ifndef XENPY_BLOCK_MAPPED_H
#define XENPY_BLOCK_MAPPED_H

#include "transfer.h"

struct block_mapped {
    uint8_t *address; /* NULL: not mapped */
    uint64_t size;
    bool shrinks;     /* a regular file, which may be cut off */
    bool fills_holes; /* a tmpfs: after a discard it is read in another way */
    uint32_t touched; /* chunks that have page tables */
    uint8_t *chunks;  /* a bit for each */
};

/* Returns 0 or -errno; it is no error then to read the file in another way. */
int block_mapped_open(struct block_mapped *mapped, int fd, uint64_t size);

/* Whether the transfer is a read of what is mapped. */
static inline bool block_mapped_covers(const struct block_mapped *mapped,
                                       const struct block_transfer *transfer)
{
    return mapped->address && !transfer->write &&
           transfer->offset + transfer->length <= mapped->size;
}

/* Returns 0; -EIO if not every byte was there; -ENOMEM if the mapping is gone, and the file is to be
 * read in another way. */
int block_mapped_read(struct block_mapped *mapped, int fd, const struct block_transfer *transfer);

void block_mapped_close(struct block_mapped *mapped);

#endif /* XENPY_BLOCK_MAPPED_H */
