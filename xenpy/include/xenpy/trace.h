/* SPDX-License-Identifier: MIT */
/*
 * What a ring has carried, for whoever looks on: a ring of records in memory that the engine shares
 * with one that may only read it.
 *
 * One engine writes, and waits for nobody: the oldest record makes room for the newest.  Readers
 * know by the count which records they have missed.  As in a seqlock, a record that was copied
 * out is good if the engine cannot have begun to write over it meanwhile:
 *
 *   - a record is written before `written` passes it (release), and the next ones after that (the
 *     fence in xenpy_trace_publish);
 *   - a reader copies first and reads `written` then (the fence in xenpy_trace_read).
 *
 * While nobody wants records the engine looks at one word for each batch.
 */
#ifndef XENPY_TRACE_H
#define XENPY_TRACE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <xenpy/ring_core.h>

#define XENPY_TRACE_VERSION 1u
#define XENPY_TRACE_ENTRIES 16384u /* a power of two */
#define XENPY_TRACE_BATCH 32u      /* records that are under way at most */
#define XENPY_TRACE_REQUEST 112u
#define XENPY_TRACE_RESPONSE 16u

/* A test's build lets the engine come around here, before record `i` is copied out. */
#ifndef XENPY_TRACE_COPYING
#define XENPY_TRACE_COPYING(i)
#endif

struct xenpy_trace_record {
    uint64_t taken;         /* CLOCK_MONOTONIC in ns: the request was copied out of the ring */
    uint64_t answered;      /* its response is about to be published */
    uint64_t detail;        /* what the driver knows beside the message */
    uint32_t index;         /* of the request in the ring, free-running */
    uint16_t request_size;  /* of the message in the ring, of which what fits is here */
    uint16_t response_size;
    uint8_t request[XENPY_TRACE_REQUEST];
    uint8_t response[XENPY_TRACE_RESPONSE];
};

struct xenpy_trace {
    uint32_t version; /* XENPY_TRACE_VERSION */
    uint32_t size;    /* of this structure */
    uint32_t wanted;  /* written by the control plane: somebody reads */
    uint32_t ended;   /* written by the control plane: no record comes any more */
    uint64_t written; /* records, free-running */
    uint8_t padding[40];
    struct xenpy_trace_record records[XENPY_TRACE_ENTRIES];
};

static inline size_t xenpy_trace_size(void)
{
    return sizeof(struct xenpy_trace);
}

static inline uint64_t xenpy_trace_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* When a batch was taken; 0 if nobody wants to know. */
static inline uint64_t xenpy_trace_taken(const struct xenpy_trace *trace)
{
    return __atomic_load_n(&trace->wanted, __ATOMIC_RELAXED) ? xenpy_trace_now() : 0;
}

/* The place of a record that is still to be published: `number` is less than XENPY_TRACE_BATCH. */
static inline struct xenpy_trace_record *xenpy_trace_place(struct xenpy_trace *trace,
                                                           uint32_t number)
{
    /* Only the engine writes it, so that it may read it as it likes. */
    return &trace->records[(trace->written + number) & (XENPY_TRACE_ENTRIES - 1)];
}

static inline void xenpy_trace_publish(struct xenpy_trace *trace, uint32_t count)
{
    __atomic_store_n(&trace->written, trace->written + count, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

/* One record, of an engine that is not in C. */
static inline void xenpy_trace_put(struct xenpy_trace *trace, uint64_t taken, uint32_t index,
                                   uint64_t detail, const uint8_t *request, size_t request_size,
                                   const uint8_t *response, size_t response_size)
{
    struct xenpy_trace_record *record = xenpy_trace_place(trace, 0);

    record->taken = taken;
    record->answered = xenpy_trace_now();
    record->detail = detail;
    record->index = index;
    record->request_size = (uint16_t)request_size;
    record->response_size = (uint16_t)response_size;
    memcpy(record->request, request,
           request_size < XENPY_TRACE_REQUEST ? request_size : XENPY_TRACE_REQUEST);
    memcpy(record->response, response,
           response_size < XENPY_TRACE_RESPONSE ? response_size : XENPY_TRACE_RESPONSE);
    xenpy_trace_publish(trace, 1);
}

static inline uint64_t xenpy_trace_written(const struct xenpy_trace *trace)
{
    return __atomic_load_n(&trace->written, __ATOMIC_ACQUIRE);
}

/*
 * Copy out records from number *next on, at most `limit`, and move *next behind them; it skips
 * those that are lost.  Returns how many; 0 if there is none.
 */
static inline uint32_t xenpy_trace_read(const struct xenpy_trace *trace, uint64_t *next,
                                        struct xenpy_trace_record *out, uint32_t limit)
{
    uint64_t written = xenpy_trace_written(trace), first = *next, oldest;
    uint32_t count, i;

    if (written - first > XENPY_TRACE_ENTRIES - XENPY_TRACE_BATCH)
        first = written - (XENPY_TRACE_ENTRIES - XENPY_TRACE_BATCH);
    count = written - first < limit ? (uint32_t)(written - first) : limit;
    for (i = 0; i < count; i++) {
        XENPY_TRACE_COPYING(i);
        xenpy_copy_once(&out[i], &trace->records[(first + i) & (XENPY_TRACE_ENTRIES - 1)],
                        sizeof(*out));
    }
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    written = __atomic_load_n(&trace->written, __ATOMIC_RELAXED);
    oldest = written < XENPY_TRACE_ENTRIES - XENPY_TRACE_BATCH
                 ? 0 : written - (XENPY_TRACE_ENTRIES - XENPY_TRACE_BATCH);
    *next = first + count;
    if (first >= oldest)
        return count;
    /* The engine has come around: the first ones may be torn. */
    if (oldest - first >= count) {
        *next = oldest;
        return 0;
    }
    memmove(out, out + (oldest - first), (count - (oldest - first)) * sizeof(*out));
    return count - (uint32_t)(oldest - first);
}

#endif /* XENPY_TRACE_H */
