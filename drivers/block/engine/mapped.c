/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "mapped.h"

#define CHUNK_SHIFT 21 /* what one page of page tables covers */
/* 2 GiB of the file: 4 MiB of page tables, which nothing but an unmap frees. */
#define CHUNKS_LIMIT 1024u
#define SIZE_LIMIT (UINT64_C(1) << 44) /* of 2^47 bytes that a process has */

static __thread sigjmp_buf *volatile guard;

static void on_sigbus(int number)
{
    if (guard)
        siglongjmp(*guard, 1);
    /* Not ours: let it end the process, as it would have. */
    signal(number, SIG_DFL);
    raise(number);
}

static int map(struct block_mapped *mapped, int fd)
{
    void *address = mmap(NULL, mapped->size, PROT_READ, MAP_SHARED, fd, 0);

    mapped->address = address == MAP_FAILED ? NULL : address;
    return mapped->address ? 0 : -errno;
}

int block_mapped_open(struct block_mapped *mapped, int fd, uint64_t size)
{
    /* SA_NODEFER: the handler is left by a jump, which restores no mask. */
    struct sigaction action = { .sa_handler = on_sigbus, .sa_flags = SA_NODEFER };
    struct statfs system;
    struct stat status;
    int failed;

    *mapped = (struct block_mapped){ .size = size };
    if (size == 0 || size > SIZE_LIMIT || fstat(fd, &status) < 0 || fstatfs(fd, &system) < 0)
        return -EINVAL;
    /* To read a hole of a tmpfs through a mapping fills it: where there are any, not so. */
    mapped->fills_holes = S_ISREG(status.st_mode) && system.f_type == TMPFS_MAGIC;
    if (mapped->fills_holes && (uint64_t)status.st_blocks * 512 < size)
        return -EINVAL;
    mapped->shrinks = S_ISREG(status.st_mode);
    mapped->chunks = calloc((size >> CHUNK_SHIFT) / 8 + 1, 1);
    if (!mapped->chunks)
        return -ENOMEM;
    failed = map(mapped, fd);
    if (failed)
        block_mapped_close(mapped);
    else
        sigaction(SIGBUS, &action, NULL);
    return failed;
}

void block_mapped_close(struct block_mapped *mapped)
{
    if (mapped->address)
        munmap(mapped->address, mapped->size);
    free(mapped->chunks);
    *mapped = (struct block_mapped){ 0 };
}

/* Count the chunks that a read touches; start anew with page tables when there are too many. */
static bool bound_tables(struct block_mapped *mapped, int fd, uint64_t offset, uint64_t length)
{
    uint64_t chunk = offset >> CHUNK_SHIFT, last = (offset + length - 1) >> CHUNK_SHIFT;

    for (; chunk <= last; chunk++) {
        uint8_t *byte = &mapped->chunks[chunk / 8], bit = (uint8_t)(1u << chunk % 8);

        if (*byte & bit)
            continue;
        if (mapped->touched == CHUNKS_LIMIT) {
            munmap(mapped->address, mapped->size);
            memset(mapped->chunks, 0, (mapped->size >> CHUNK_SHIFT) / 8 + 1);
            mapped->touched = 0;
            if (map(mapped, fd) < 0)
                return false;
        }
        *byte |= bit;
        mapped->touched++;
    }
    return true;
}

/* Returns whether the last byte is 0.  Not inline: what it has in registers is lost in a jump. */
static __attribute__((noinline)) int copy(const uint8_t *from, const struct block_transfer *transfer)
{
    uint32_t n;

    for (n = 0; n < transfer->count; n++) {
        memcpy(transfer->iov[n].iov_base, from, transfer->iov[n].iov_len);
        from += transfer->iov[n].iov_len;
    }
    return from[-1] == 0;
}

static int guarded_copy(const uint8_t *from, const struct block_transfer *transfer)
{
    sigjmp_buf jump;
    int result;

    if (sigsetjmp(jump, 0)) {
        guard = NULL;
        return -EIO;
    }
    guard = &jump;
    result = copy(from, transfer);
    guard = NULL;
    return result;
}

int block_mapped_read(struct block_mapped *mapped, int fd, const struct block_transfer *transfer)
{
    struct stat status;
    int result;

    if (!bound_tables(mapped, fd, transfer->offset, transfer->length))
        return -ENOMEM;
    result = guarded_copy(mapped->address + transfer->offset, transfer);
    /* Past the end of a file, up to the end of its last page, are zeros instead of a SIGBUS.  If
     * the last byte is another, all of them were within the file. */
    if (result == 1 && mapped->shrinks &&
        (fstat(fd, &status) < 0 ||
         (uint64_t)status.st_size < transfer->offset + transfer->length))
        return -EIO;
    return result < 0 ? result : 0;
}
