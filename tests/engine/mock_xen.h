/* SPDX-License-Identifier: MIT */
/*
 * Xen for the native engine, without Xen: a grant table over a memfd and one event channel, as a
 * `struct xenpy_calls`; and a frontend whose slots and ring are laid out by the installed ring.h
 * and blkif.h, not by ours.  Its indices are C11 atomics where ring.h has plain words and
 * barriers, for the thread sanitizer's sake.
 *
 * Every page of the guest is a grant: reference N is page N.
 */
#ifndef MOCK_XEN_H
#define MOCK_XEN_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xen/io/blkif.h>

/* All of the engine as one unit, as xenpy builds it; a test may then call its inside. */
#include "batch.c"
#include "copy.c"
#include "engine.c"
#include "grant_cache.c"
#include "disk.c"
#include "mapped.c"
#include "store.c"

#define PAGES 1024u
#define DISK_SECTORS 4096u
#define PORT 7u
/* Beside flags of block_config: the disk is a store of callbacks; a stop is a signal. */
#define RIG_CALLBACKS 0x10000u
#define RIG_SIGNAL 0x20000u

#define check(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                \
            abort();                                                                       \
        }                                                                                  \
    } while (0)

#include "callbacks.h"

enum grant { NOT_GRANTED, READ_WRITE, READ_ONLY };

struct mock {
    int memfd;
    uint8_t *memory; /* the guest's own view */
    uint8_t granted[PAGES];
    uint8_t paged_out[PAGES]; /* so many more copies answer GNTST_eagain */
    int to_back;
    pthread_mutex_t lock;
    bool masked, pending;
    long mapped; /* pages, now */
    uint64_t notified; /* how often the frontend was */
};

static uint8_t *mock_page(struct mock *mock, uint32_t ref)
{
    return mock->memory + (size_t)ref * 4096;
}

static void *mock_map(void *grants, uint32_t count, uint32_t domid, uint32_t *refs, int prot)
{
    struct mock *mock = grants;
    uint8_t *address;
    uint32_t i;

    check(domid == 1);
    for (i = 0; i < count; i++) {
        if (refs[i] >= PAGES || mock->granted[refs[i]] != READ_WRITE) {
            errno = EINVAL;
            return NULL;
        }
    }
    address = mmap(NULL, (size_t)count * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(address != MAP_FAILED);
    for (i = 0; i < count; i++)
        check(mmap(address + (size_t)i * 4096, 4096, prot, MAP_SHARED | MAP_FIXED, mock->memfd,
                   (off_t)refs[i] * 4096) != MAP_FAILED);
    __atomic_fetch_add(&mock->mapped, count, __ATOMIC_RELAXED);
    return address;
}

static int mock_unmap(void *grants, void *address, uint32_t count)
{
    struct mock *mock = grants;

    check(munmap(address, (size_t)count * 4096) == 0);
    __atomic_fetch_sub(&mock->mapped, count, __ATOMIC_RELAXED);
    return 0;
}

static int mock_copy(void *grants, uint32_t count, xengnttab_grant_copy_segment_t *segments)
{
    struct mock *mock = grants;
    uint32_t i;

    for (i = 0; i < count; i++) {
        xengnttab_grant_copy_segment_t *segment = &segments[i];
        bool from_guest = segment->flags == GNTCOPY_source_gref;
        union xengnttab_copy_ptr *foreign = from_guest ? &segment->source : &segment->dest;
        uint32_t ref = foreign->foreign.ref;
        uint8_t *page;

        check(foreign->foreign.domid == 1);
        check((uint32_t)foreign->foreign.offset + segment->len <= 4096);
        segment->status = GNTST_bad_gntref;
        if (ref >= PAGES || mock->granted[ref] == NOT_GRANTED ||
            (mock->granted[ref] == READ_ONLY && !from_guest))
            continue;
        if (mock->paged_out[ref]) {
            mock->paged_out[ref]--;
            segment->status = GNTST_eagain;
            continue;
        }
        page = mock_page(mock, ref) + foreign->foreign.offset;
        if (from_guest)
            memcpy(segment->dest.virt, page, segment->len);
        else
            memcpy(page, segment->source.virt, segment->len);
        segment->status = GNTST_okay;
    }
    return 0;
}

static int mock_notify(void *events, uint32_t port)
{
    struct mock *mock = events;

    check(port == PORT);
    __atomic_fetch_add(&mock->notified, 1, __ATOMIC_RELAXED);
    return 0;
}

static int mock_pending(void *events, uint32_t *ports, uint32_t limit)
{
    struct mock *mock = events;
    eventfd_t value;

    check(limit > 0);
    if (eventfd_read(mock->to_back, &value) < 0)
        return -1;
    pthread_mutex_lock(&mock->lock);
    mock->masked = true;
    pthread_mutex_unlock(&mock->lock);
    ports[0] = PORT;
    return 1;
}

static int mock_unmask(void *events, const uint32_t *ports, uint32_t count)
{
    struct mock *mock = events;

    check(count == 1 && ports[0] == PORT);
    pthread_mutex_lock(&mock->lock);
    mock->masked = false;
    if (mock->pending)
        check(eventfd_write(mock->to_back, 1) == 0);
    mock->pending = false;
    pthread_mutex_unlock(&mock->lock);
    return 0;
}

/* The frontend notifies the backend. */
static void mock_send(struct mock *mock)
{
    pthread_mutex_lock(&mock->lock);
    if (mock->masked)
        mock->pending = true;
    else
        check(eventfd_write(mock->to_back, 1) == 0);
    pthread_mutex_unlock(&mock->lock);
}

/* A disk on a memfd, its engine in a thread, and the frontend's half of the ring. */
struct rig {
    struct mock mock;
    struct xenpy_calls calls;
    struct block_config config;
    struct block_state *state;
    struct block_disk shared;
    struct block_callbacks *callbacks;
    struct xenpy_trace *trace;
    int disk;
    pthread_t thread;
    int result;
    struct blkif_front_ring ring;
    uint32_t pushed;     /* req_prod as it was published last */
    uint32_t first_page; /* after those of the ring */
};

static inline void rig_open(struct rig *rig, uint32_t ring_pages, uint32_t flags)
{
    struct mock *mock = &rig->mock;

    memset(rig, 0, sizeof(*rig));
    mock->memfd = memfd_create("guest", MFD_CLOEXEC);
    check(mock->memfd >= 0 && ftruncate(mock->memfd, (off_t)PAGES * 4096) == 0);
    mock->memory = mmap(NULL, (size_t)PAGES * 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
                        mock->memfd, 0);
    check(mock->memory != MAP_FAILED);
    memset(mock->granted, READ_WRITE, sizeof(mock->granted));
    mock->to_back = eventfd(0, flags & RIG_SIGNAL ? EFD_CLOEXEC : EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&mock->lock, NULL);
    rig->calls = (struct xenpy_calls){
        .grants = mock, .events = mock, .events_fd = mock->to_back, .map = mock_map,
        .unmap = mock_unmap, .copy = mock_copy, .notify = mock_notify,
        .pending = mock_pending, .unmask = mock_unmask,
    };
    rig->disk = memfd_create("disk", MFD_CLOEXEC);
    /* Allocated: a tmpfs file with holes is not mapped. */
    check(rig->disk >= 0 && posix_fallocate(rig->disk, 0, DISK_SECTORS * 512) == 0);
    rig->config = (struct block_config){
        .version = BLOCK_VERSION, .size = sizeof(rig->config), .domid = 1, .port = PORT,
        .abi = BLOCK_ABI_64, .ring_pages = ring_pages, .flags = flags & 0xffff,
        .max_indirect = 256, .max_mapped = 256, .batch = BLOCK_BATCH, .store_fd = rig->disk,
        .store_kind = flags & RIG_CALLBACKS ? BLOCK_STORE_CALLBACK : BLOCK_STORE_FILE,
        .stop_fd = flags & RIG_SIGNAL ? -1 : eventfd(0, EFD_CLOEXEC),
        .sector_size = 512, .store_size = DISK_SECTORS * 512,
    };
    rig->state = calloc(1, sizeof(*rig->state));
    rig->state->version = BLOCK_VERSION;
    rig->state->size = sizeof(*rig->state);
    rig->state->sectors = DISK_SECTORS;
    block_disk_init(&rig->shared);
    rig->callbacks = callbacks_open(rig->disk);
    rig->trace = calloc(1, sizeof(*rig->trace));
    rig->trace->version = XENPY_TRACE_VERSION;
    rig->trace->size = sizeof(*rig->trace);
    rig->first_page = ring_pages;
    SHARED_RING_INIT((struct blkif_sring *)mock->memory);
    FRONT_RING_INIT(&rig->ring, (struct blkif_sring *)mock->memory, (size_t)ring_pages * 4096);
}

static void *rig_run(void *argument)
{
    struct rig *rig = argument;

    int result = block_engine_run(&rig->config, rig->state, &rig->calls, rig->mock.memory,
                                  &rig->shared, rig->trace, rig->callbacks);

    __atomic_store_n(&rig->result, result, __ATOMIC_RELEASE);
    return NULL;
}

static inline void rig_start(struct rig *rig)
{
    check(pthread_create(&rig->thread, NULL, rig_run, rig) == 0);
}

static int rig_events; /* of the one whose stop is a signal */

static inline void rig_signalled(int number)
{
    (void)number;
    fcntl(rig_events, F_SETFL, O_NONBLOCK);
}

/* As a worker is stopped. */
static inline void rig_signal(struct rig *rig)
{
    struct sigaction action = { .sa_handler = rig_signalled };

    rig_events = rig->mock.to_back;
    check(sigaction(SIGRTMIN, &action, NULL) == 0);
    check(pthread_kill(rig->thread, SIGRTMIN) == 0);
}

/* Stop the engine; what it returned.  Nothing may be left mapped. */
static inline int rig_stop(struct rig *rig)
{
    __atomic_store_n(&rig->state->stop, 1, __ATOMIC_RELAXED);
    if (rig->config.stop_fd < 0)
        rig_signal(rig);
    else
        check(eventfd_write(rig->config.stop_fd, 1) == 0);
    check(pthread_join(rig->thread, NULL) == 0);
    check(rig->mock.mapped == 0);
    check(rig->state->counters.grants_mapped == rig->state->counters.grants_unmapped);
    return rig->result;
}

static inline void rig_close(struct rig *rig)
{
    munmap(rig->mock.memory, (size_t)PAGES * 4096);
    close(rig->mock.memfd);
    close(rig->mock.to_back);
    if (rig->config.stop_fd >= 0)
        close(rig->config.stop_fd);
    close(rig->disk);
    callbacks_close(rig->callbacks);
    free(rig->state);
    free(rig->trace);
}

/* A slot to fill; publish with rig_push. */
static inline struct blkif_request *rig_request(struct rig *rig)
{
    struct blkif_request *request;

    check(!RING_FULL(&rig->ring));
    request = RING_GET_REQUEST(&rig->ring, rig->ring.req_prod_pvt);
    rig->ring.req_prod_pvt++;
    memset(request, 0, sizeof(*request));
    return request;
}

static inline void rig_push(struct rig *rig)
{
    struct blkif_sring *sring = rig->ring.sring;
    uint32_t prod = rig->ring.req_prod_pvt, count = prod - rig->pushed;

    rig->pushed = prod;
    __atomic_store_n(&sring->req_prod, prod, __ATOMIC_SEQ_CST);
    if (prod - __atomic_load_n(&sring->req_event, __ATOMIC_SEQ_CST) < count)
        mock_send(&rig->mock);
}

/* Wait for the next response. */
static inline struct blkif_response rig_response(struct rig *rig)
{
    struct blkif_response response;

    while (__atomic_load_n(&rig->ring.sring->rsp_prod, __ATOMIC_ACQUIRE) == rig->ring.rsp_cons) {
        check(__atomic_load_n(&rig->result, __ATOMIC_RELAXED) == 0);
        sched_yield();
    }
    response = *RING_GET_RESPONSE(&rig->ring, rig->ring.rsp_cons);
    rig->ring.rsp_cons++;
    return response;
}

/* xorshift64*: the same everywhere, seeded by the caller, who prints the seed. */
static inline uint64_t draw(uint64_t *seed)
{
    *seed ^= *seed >> 12;
    *seed ^= *seed << 25;
    *seed ^= *seed >> 27;
    return *seed * 2685821657736338717u;
}

static inline uint32_t below(uint64_t *seed, uint32_t bound)
{
    return (uint32_t)((draw(seed) >> 32) * bound >> 32);
}

#endif /* MOCK_XEN_H */
