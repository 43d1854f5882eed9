/* SPDX-License-Identifier: MIT */
/* The ring's loop: sleep, take, record, carry out, record, answer, notify. */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#include <xenpy/calls.h>
#include <xenpy/ring_core.h>
#include <xenpy/trace.h>

#include "batch.h"
#include "engine.h"

#define PORTS 16
/* Wake-ups without work before the port stays masked for a while (XSA-332's remedy), and for how
 * many ms: doubled from the first to the limit.  As xenpy.runtime does. */
#define SPURIOUS_ALLOWED 8u
#define HOLD_OFF_LIMIT 50

/* A test's build takes the ring page away here, and gives it back for the answers. */
#ifndef BLOCK_RING_HIDE
#define BLOCK_RING_HIDE(shared)
#define BLOCK_RING_SHOW(shared)
#endif

struct engine {
    const struct block_config *config;
    struct block_state *state;
    const struct xenpy_calls *calls;
    void *shared;
    struct xenpy_ring ring;
    struct block_batch *batch;
    struct xenpy_trace *trace;
    uint64_t taken; /* when the batch was, if it is to be recorded, else 0 */
};

static int ring_open(struct engine *engine)
{
    const struct block_config *config = engine->config;
    uint32_t room = config->ring_pages * BLOCK_PAGE - XENPY_RING_HEADER;
    struct xenpy_ring *ring = &engine->ring;

    ring->slot_size = block_layouts[config->abi].request;
    for (ring->entries = 1; ring->entries * 2 * ring->slot_size <= room;)
        ring->entries *= 2;
    /* Where the one before us left it, as the frontend sees it: 0 in a fresh ring. */
    ring->produced = ring->consumed = config->start;
    engine->state->req_cons = ring->consumed;
    engine->state->rsp_prod = ring->produced;
    return ring->entries <= BLOCK_MAX_SLOTS ? 0 : -EINVAL;
}

/* Slots that lie side by side: those of a batch are one or, around the ring's end, two runs. */
struct run {
    uint8_t *shared;          /* the first one */
    struct block_slot *slot;  /* its place in the journal */
    struct block_job *job;
    uint32_t index, count;
};

/* The run of at most `count` slots from `index`, the first of which is number `done` of its
 * batch. */
static struct run run_from(struct engine *engine, uint32_t index, uint32_t done, uint32_t count)
{
    const struct xenpy_ring *ring = &engine->ring;
    uint32_t position = (index + done) & (ring->entries - 1);
    uint32_t left = count - done, room = ring->entries - position;

    return (struct run){
        .shared = xenpy_slot(ring, engine->shared, position),
        .slot = &engine->state->slots[position], .job = &engine->batch->jobs[done],
        .index = index + done, .count = left < room ? left : room,
    };
}

BLOCK_INLINE void take_run(uint32_t abi, const struct block_limits *limits, struct run run)
{
    for (; run.count; run.count--, run.slot++, run.job++) {
        const uint8_t *shared = run.shared;

        if (abi == BLOCK_ABI_64)
            shared = __builtin_assume_aligned(shared, 16);
        run.slot->index = run.index++;
        block_take(abi, limits, shared, run.slot->message, &run.job->request);
        run.shared += block_layouts[abi].request;
    }
}

/* Take requests into the journal, and check what is there. */
static void take(struct engine *engine, uint32_t count)
{
    struct block_limits limits;
    uint32_t done = 0;

    engine->batch->limits.sectors = __atomic_load_n(&engine->state->sectors, __ATOMIC_RELAXED);
    limits = engine->batch->limits;
    engine->taken = engine->trace ? xenpy_trace_taken(engine->trace) : 0;
    while (done < count) {
        struct run run = run_from(engine, engine->ring.consumed, done, count);

        if (limits.abi == BLOCK_ABI_32)
            take_run(BLOCK_ABI_32, &limits, run);
        else
            take_run(BLOCK_ABI_64, &limits, run);
        done += run.count;
    }
    engine->ring.consumed += count;
    /* Before any of it is carried out. */
    xenpy_store_release(&engine->state->req_cons, engine->ring.consumed);
}

BLOCK_INLINE void answer_run(uint32_t abi, struct run run)
{
    for (; run.count; run.count--, run.slot++, run.job++) {
        run.slot->status = run.job->request.status;
        block_response(abi, &run.job->request, run.shared);
        run.shared += block_layouts[abi].request;
    }
}

/* For whoever looks on: before the frontend can know that it is answered, so that nobody who does
 * misses a record. */
static void record(struct engine *engine, uint32_t count)
{
    uint32_t abi = engine->config->abi, i;
    uint64_t now = xenpy_trace_now();

    for (i = 0; i < count; i++) {
        struct run run = run_from(engine, engine->ring.produced, i, 1);
        struct xenpy_trace_record *record = xenpy_trace_place(engine->trace, i);

        record->taken = engine->taken;
        record->answered = now;
        record->detail = run.job->request.sectors;
        record->index = run.index;
        record->request_size = block_layouts[abi].request;
        record->response_size = BLOCK_RESPONSE_BYTES(abi);
        memcpy(record->request, run.slot->message, BLOCK_SLOT_BYTES);
        block_response(abi, &run.job->request, record->response);
    }
    xenpy_trace_publish(engine->trace, count);
}

/* Returns 0, or -1 with errno if the frontend could not be notified. */
static int answer(struct engine *engine, uint32_t count)
{
    struct xenpy_ring *ring = &engine->ring;
    struct block_counters *counters = &engine->state->counters;
    uint8_t *page = engine->shared;
    uint32_t done = 0;

    while (done < count) {
        struct run run = run_from(engine, ring->produced, done, count);

        if (engine->config->abi == BLOCK_ABI_32)
            answer_run(BLOCK_ABI_32, run);
        else
            answer_run(BLOCK_ABI_64, run);
        done += run.count;
    }
    xenpy_store_release(&engine->state->rsp_prod, ring->produced + count);
    if (engine->taken)
        record(engine, count);
    block_count(&counters->requests, count);
    block_count(&counters->batches, 1);
    if (!xenpy_publish(ring, page + XENPY_RSP_PROD, page + XENPY_RSP_EVENT, count))
        return 0;
    block_count(&counters->notifications, 1);
    return engine->calls->notify(engine->calls->events, engine->config->port);
}

/* One bounded batch.  Returns how many requests it had; 0 only after the final check, so that the
 * next one is sure to bring an event; -errno. */
static int64_t service(struct engine *engine)
{
    int64_t available = xenpy_back_available(&engine->ring, engine->shared);
    uint32_t count;

    if (available == 0)
        available = xenpy_back_final_check(&engine->ring, engine->shared);
    if (available <= 0)
        return available;
    count = available < engine->config->batch ? (uint32_t)available : engine->config->batch;
    take(engine, count);
    BLOCK_RING_HIDE(engine->shared);
    block_batch_run(engine->batch, count);
    BLOCK_RING_SHOW(engine->shared);
    return answer(engine, count) < 0 ? -(int64_t)errno : (int64_t)count;
}

static bool told_to_stop(const struct engine *engine)
{
    return __atomic_load_n(&engine->state->stop, __ATOMIC_ACQUIRE) != 0;
}

/* Until the ring is empty; a frontend that never lets it be is left on a stop. */
static int64_t drain(struct engine *engine)
{
    int64_t handled = 0, some;

    while ((some = service(engine)) > 0) {
        handled += some;
        if (told_to_stop(engine))
            break;
    }
    return some < 0 ? some : handled;
}

/* How many of the pending ports are ours: 1 or 0, or -errno. */
static int take_event(struct engine *engine)
{
    uint32_t ports[PORTS];
    int count = engine->calls->pending(engine->calls->events, ports, PORTS), found = 0, i;

    if (count < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    for (i = 0; i < count; i++)
        found |= ports[i] == engine->config->port;
    return found;
}

/* Sleep until there is an event or a stop, and take the event: a system call less if a stop needs
 * no descriptor.  As take_event returns. */
static int wait_for_event(struct engine *engine, struct pollfd *fds)
{
    if (engine->config->stop_fd >= 0 && poll(fds, 2, -1) < 0)
        return errno == EINTR ? 0 : -errno;
    return fds[0].revents ? 0 : take_event(engine);
}

static int loop(struct engine *engine)
{
    struct pollfd fds[] = {
        { .fd = engine->config->stop_fd, .events = POLLIN },
        { .fd = engine->calls->events_fd, .events = POLLIN },
    };
    uint32_t idle = 0;
    /* Requests may have been published before the port was bound. */
    int64_t handled = drain(engine);

    while (handled >= 0) {
        int found = wait_for_event(engine, fds);
        bool stop = fds[0].revents || told_to_stop(engine);

        if (found < 0)
            return found;
        /* Also on a stop: what the frontend put in the ring before we were told. */
        handled = drain(engine);
        if (stop)
            break;
        if (!found)
            continue;
        block_count(&engine->state->counters.wakeups, 1);
        idle = handled ? 0 : idle + 1;
        if (idle > SPURIOUS_ALLOWED) {
            uint32_t doublings = idle - SPURIOUS_ALLOWED;
            int pause = doublings < 6 ? 1 << doublings : HOLD_OFF_LIMIT;

            if (poll(fds, 1, pause) > 0)
                break;
        }
        /* Only now: what arrived since the final check is pending behind the mask. */
        if (engine->calls->unmask(engine->calls->events, &engine->config->port, 1) < 0)
            return -errno;
    }
    return handled < 0 ? (int)handled : 0;
}

uint32_t block_ring_start(const void *ring)
{
    return xenpy_load_acquire((const uint8_t *)ring + XENPY_RSP_PROD);
}

int block_engine_run(const struct block_config *config, struct block_state *state,
                     const struct xenpy_calls *calls, void *ring, struct block_disk *disk,
                     struct xenpy_trace *trace, const struct block_callbacks *callbacks)
{
    struct engine engine = {
        .config = config, .state = state, .calls = calls, .shared = ring, .trace = trace,
    };
    int result, failed;

    if (config->version != BLOCK_VERSION || config->size != sizeof(*config) ||
        state->version != BLOCK_VERSION || state->size != sizeof(*state) ||
        config->abi > BLOCK_ABI_32 || config->ring_pages < 1 || config->ring_pages > 16 ||
        config->max_indirect > BLOCK_INDIRECT_SEGMENTS || config->batch < 1 ||
        config->batch > BLOCK_BATCH || config->sector_size < 512 ||
        config->sector_size > BLOCK_PAGE || (config->sector_size & (config->sector_size - 1)) ||
        (trace && (trace->version != XENPY_TRACE_VERSION || trace->size != sizeof(*trace))))
        return -EINVAL;
    result = ring_open(&engine);
    if (result)
        return result;
    engine.batch = mmap(NULL, sizeof(*engine.batch), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (engine.batch == MAP_FAILED)
        return -errno;
    result = block_batch_open(engine.batch, config, calls, &state->counters, disk, callbacks);
    if (result == 0) {
        result = loop(&engine);
        failed = block_batch_close(engine.batch);
        result = result ? result : failed;
    }
    munmap(engine.batch, sizeof(*engine.batch));
    return result;
}
