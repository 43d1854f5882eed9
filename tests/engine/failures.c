/* SPDX-License-Identifier: MIT */
/*
 * Stores that fail, and what must not be lost then.  Linked with --wrap, so that the system calls
 * of the engine come here.
 */
#include "mock_xen.h"

static char journal[4096];
static int write_fails_from = -1, write_errno; /* the sector */
static bool flush_fails, short_calls;

ssize_t __real_pwritev(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t __real_preadv(int fd, const struct iovec *iov, int count, off_t offset);

static void note(const char *what, long at)
{
    size_t length = strlen(journal);

    snprintf(journal + length, sizeof(journal) - length, "%s %ld;", what, at);
}

ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    struct iovec one = iov[0];
    off_t end = (off_t)write_fails_from * 512;

    note("write", (long)(offset / 512));
    if (short_calls && one.iov_len > 512) {
        one.iov_len = 512;
        return __real_pwritev(fd, &one, 1, offset);
    }
    if (write_fails_from < 0)
        return __real_pwritev(fd, iov, count, offset);
    if (offset >= end) {
        errno = write_errno;
        return -1;
    }
    if (offset + (off_t)one.iov_len > end)
        one.iov_len = (size_t)(end - offset);
    return __real_pwritev(fd, &one, 1, offset);
}

ssize_t __wrap_preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    struct iovec one = iov[0];

    if (!short_calls || one.iov_len <= 512)
        return __real_preadv(fd, iov, count, offset);
    one.iov_len = 512;
    return __real_preadv(fd, &one, 1, offset);
}

int __wrap_fdatasync(int fd)
{
    (void)fd;
    note("sync", 0);
    errno = EIO;
    return flush_fails ? -1 : 0;
}

static void ask(struct rig *rig, uint8_t operation, uint64_t id, uint64_t sector, uint32_t pages)
{
    struct blkif_request *request = rig_request(rig);
    uint32_t n;

    request->operation = operation;
    request->nr_segments = (uint8_t)pages;
    request->id = id;
    request->sector_number = sector;
    for (n = 0; n < pages; n++) {
        request->seg[n].gref = rig->first_page + n;
        request->seg[n].last_sect = 7;
    }
}

static int16_t status_of(struct rig *rig, uint8_t operation, uint64_t sector, uint32_t pages)
{
    ask(rig, operation, 1, sector, pages);
    rig_push(rig);
    return rig_response(rig).status;
}

static void forget_calls(void)
{
    journal[0] = 0;
}

/* Neighbours together; a FLUSH with segments is a flush and then a write, even where it goes on
 * at the end of the write before it; a barrier's write lies between two flushes. */
static void order(struct rig *rig)
{
    uint32_t n;

    forget_calls();
    ask(rig, BLKIF_OP_WRITE, 0, 0, 1);
    ask(rig, BLKIF_OP_WRITE, 1, 8, 1);
    ask(rig, BLKIF_OP_WRITE, 2, 64, 1);
    ask(rig, BLKIF_OP_FLUSH_DISKCACHE, 3, 72, 1);
    ask(rig, BLKIF_OP_WRITE, 4, 128, 1);
    ask(rig, BLKIF_OP_WRITE_BARRIER, 5, 136, 1);
    ask(rig, BLKIF_OP_WRITE, 6, 144, 1);
    rig_push(rig);
    for (n = 0; n < 7; n++)
        check(rig_response(rig).status == BLKIF_RSP_OKAY);
    check(!strcmp(journal, "write 0;write 64;sync 0;write 72;write 128;sync 0;write 136;sync 0;"
                           "write 144;"));
}

static void failed_writes(struct rig *rig, int number)
{
    int16_t statuses[3];
    uint32_t n;

    write_fails_from = 800;
    write_errno = number;
    ask(rig, BLKIF_OP_WRITE, 0, 792, 1); /* fits */
    ask(rig, BLKIF_OP_WRITE, 1, 800, 1); /* does not, though it is carried out with the first */
    ask(rig, BLKIF_OP_WRITE, 2, 796, 1); /* in part */
    rig_push(rig);
    for (n = 0; n < 3; n++) {
        struct blkif_response response = rig_response(rig);

        statuses[response.id] = response.status;
    }
    check(statuses[0] == BLKIF_RSP_OKAY);
    check(statuses[1] == BLKIF_RSP_ERROR && statuses[2] == BLKIF_RSP_ERROR);
    write_fails_from = -1;
}

static void short_transfers(struct rig *rig)
{
    uint32_t n;

    short_calls = true;
    for (n = 0; n < 11; n++)
        memset(mock_page(&rig->mock, rig->first_page + n), 'a' + (int)n, 4096);
    check(status_of(rig, BLKIF_OP_WRITE, 1000, 11) == BLKIF_RSP_OKAY);
    for (n = 0; n < 11; n++)
        memset(mock_page(&rig->mock, rig->first_page + n), 0, 4096);
    check(status_of(rig, BLKIF_OP_READ, 1000, 11) == BLKIF_RSP_OKAY);
    for (n = 0; n < 11; n++)
        check(mock_page(&rig->mock, rig->first_page + n)[4095] == 'a' + (int)n);
    short_calls = false;
}

/* The kernel reports a lost write once; the bytes are gone for good. */
static void failed_flush(struct rig *rig)
{
    check(status_of(rig, BLKIF_OP_FLUSH_DISKCACHE, 0, 0) == BLKIF_RSP_OKAY);
    flush_fails = true;
    check(status_of(rig, BLKIF_OP_FLUSH_DISKCACHE, 0, 0) == BLKIF_RSP_ERROR);
    flush_fails = false;
    check(status_of(rig, BLKIF_OP_FLUSH_DISKCACHE, 0, 0) == BLKIF_RSP_ERROR);
    /* What would have to be durable is not carried out either. */
    forget_calls();
    check(status_of(rig, BLKIF_OP_WRITE_BARRIER, 0, 1) == BLKIF_RSP_ERROR);
    check(!strcmp(journal, ""));
    /* Linux's frontend sends no flush after one that failed; it must hear of the loss all the same. */
    check(status_of(rig, BLKIF_OP_WRITE, 0, 1) == BLKIF_RSP_ERROR);
    check(status_of(rig, BLKIF_OP_READ, 0, 1) == BLKIF_RSP_OKAY);
}

/* What was given back stays so, also when it is read: a mapping of a tmpfs would fill the hole. */
static void discarded(struct rig *rig)
{
    struct blkif_request_discard *request = (void *)rig_request(rig);
    struct stat before, after;

    check(fstat(rig->disk, &before) == 0);
    request->operation = BLKIF_OP_DISCARD;
    request->id = 1;
    request->sector_number = 512;
    request->nr_sectors = 64;
    rig_push(rig);
    check(rig_response(rig).status == BLKIF_RSP_OKAY);
    memset(mock_page(&rig->mock, rig->first_page), 0xC5, 4096);
    check(status_of(rig, BLKIF_OP_READ, 512, 1) == BLKIF_RSP_OKAY);
    check(mock_page(&rig->mock, rig->first_page)[17] == 0);
    check(fstat(rig->disk, &after) == 0 && after.st_blocks == before.st_blocks - 64);
}

static void truncated(struct rig *rig)
{
    memset(mock_page(&rig->mock, rig->first_page), 0xC5, 4096);
    check(ftruncate(rig->disk, 1024 * 512) == 0);
    check(status_of(rig, BLKIF_OP_READ, 1024, 1) == BLKIF_RSP_ERROR);
    check(mock_page(&rig->mock, rig->first_page)[17] == 0xC5);
    check(status_of(rig, BLKIF_OP_READ, 1016, 1) == BLKIF_RSP_OKAY);
    /* In the middle of a page: a mapping has zeros there and no SIGBUS. */
    check(ftruncate(rig->disk, 1020 * 512) == 0);
    check(status_of(rig, BLKIF_OP_READ, 1016, 1) == BLKIF_RSP_ERROR);
    check(status_of(rig, BLKIF_OP_READ, 1008, 1) == BLKIF_RSP_OKAY);
}

/* With copied grants only: a map of a paged-out page fails, and is a copy then. */
static void paged_out(struct rig *rig)
{
    uint32_t n;

    for (n = 0; n < 11; n++)
        rig->mock.paged_out[rig->first_page + n] = (uint8_t)(n % 4);
    check(status_of(rig, BLKIF_OP_READ, 0, 11) == BLKIF_RSP_OKAY);
    for (n = 0; n < 11; n++)
        check(rig->mock.paged_out[rig->first_page + n] == 0);
    /* For good: an error, and soon. */
    memset(rig->mock.paged_out, 255, sizeof(rig->mock.paged_out));
    check(status_of(rig, BLKIF_OP_READ, 0, 11) == BLKIF_RSP_ERROR);
    check(rig->mock.paged_out[rig->first_page] > 255 - 12);
    memset(rig->mock.paged_out, 0, sizeof(rig->mock.paged_out));
}

static void evil_producer(struct rig *rig)
{
    __atomic_store_n(&rig->ring.sring->req_prod, rig->pushed + 33, __ATOMIC_RELEASE);
    mock_send(&rig->mock);
    check(pthread_join(rig->thread, NULL) == 0);
    check(rig->result == -EPROTO);
    check(rig->mock.mapped == 0);
}

int main(void)
{
    static const uint32_t ways[] = {
        0, BLOCK_PERSISTENT, BLOCK_MAPPED, BLOCK_PERSISTENT | BLOCK_MAPPED,
    };
    static struct rig rig;
    uint32_t n;

    for (n = 0; n < 4; n++) {
        rig_open(&rig, 1, ways[n] | BLOCK_DISCARD | BLOCK_BARRIER);
        rig_start(&rig);
        order(&rig);
        if (!(ways[n] & BLOCK_PERSISTENT))
            paged_out(&rig);
        failed_writes(&rig, EIO);
        failed_writes(&rig, ENOSPC);
        short_transfers(&rig);
        failed_flush(&rig);
        truncated(&rig);
        discarded(&rig);
        evil_producer(&rig);
        rig_close(&rig);
    }
    return 0;
}
