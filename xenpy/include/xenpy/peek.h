/* SPDX-License-Identifier: MIT */
/*
 * Look into rings between two others, by reading alone: from time to time, since no event comes.
 *
 * The ring's owner knows nothing of it.  What was written over between two looks is lost, and
 * counted: the indices say how much there was.  A slot is good if its turn had not come around when
 * the copy was done.  A half may have begun to write there before it says so by its index: then what
 * is copied is not what it is taken for, which the reader has to tell by what is in it.
 *
 * Both halves are somebody's guests: the indices are read with care, and nothing else is looked at.
 */
#ifndef XENPY_PEEK_H
#define XENPY_PEEK_H

#include <stdint.h>
#include <time.h>

#include <xenpy/ring_core.h>
#include <xenpy/trace.h>

#define XENPY_PEEK_MESSAGE 112u

/* A test's build lets both halves go on here, before slot `i` is copied out. */
#ifndef XENPY_PEEK_COPYING
#define XENPY_PEEK_COPYING(i)
#endif

struct xenpy_peek {
    const uint8_t *shared;
    uint32_t entries;       /* a power of two */
    uint32_t slot_size;
    uint32_t request_size, response_size; /* at most XENPY_PEEK_MESSAGE of each is copied */
    uint32_t requests, responses;         /* the next ones, by index */
    uint64_t asked, answered;             /* how many there were, seen or not */
    uint64_t lost_requests, lost_responses;
};

struct xenpy_sight {
    uint64_t when;     /* CLOCK_MONOTONIC in ns: of the look */
    uint32_t index;    /* of the request, or of the response */
    uint16_t ring;     /* its number */
    uint16_t answer;   /* 0: a request, 1: a response */
    uint8_t message[XENPY_PEEK_MESSAGE];
};

static inline void xenpy_peek_begin(struct xenpy_peek *peek)
{
    peek->requests = xenpy_load_acquire(peek->shared + XENPY_REQ_PROD);
    peek->responses = xenpy_load_acquire(peek->shared + XENPY_RSP_PROD);
}

/* Copy slots `from` up to `to` that are still good, which is told by the index of who writes over
 * them: a request's slot is its response's, a response's is that of the request one ring later. */
static inline uint32_t xenpy_peek_copy(const struct xenpy_peek *peek, uint64_t when, uint16_t ring,
                                       uint16_t answer, uint32_t from, uint32_t to,
                                       struct xenpy_sight *out)
{
    uint32_t size = answer ? peek->response_size : peek->request_size;
    uint32_t over = answer ? XENPY_REQ_PROD : XENPY_RSP_PROD, reach = answer ? peek->entries : 0;
    uint32_t count = to - from, i, passed;

    for (i = 0; i < count; i++) {
        const uint8_t *slot = peek->shared + XENPY_RING_HEADER +
                              (size_t)((from + i) & (peek->entries - 1)) * peek->slot_size;

        out[i] = (struct xenpy_sight){
            .when = when, .index = from + i, .ring = ring, .answer = answer,
        };
        XENPY_PEEK_COPYING(i);
        xenpy_copy_once(out[i].message, slot,
                        size < XENPY_PEEK_MESSAGE ? size : XENPY_PEEK_MESSAGE);
    }
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    /* Who writes over slot N says so with an index beyond N, or N and a ring. */
    passed = xenpy_load_acquire(peek->shared + over) - reach - from;
    if ((int32_t)passed <= 0)
        return count;
    passed = passed < count ? passed : count;
    memmove(out, out + passed, (count - passed) * sizeof(*out));
    return count - passed;
}

/* One look.  `out` has room for two rings of sights; returns how many there are. */
static inline uint32_t xenpy_peek_look(struct xenpy_peek *peek, uint16_t ring,
                                       struct xenpy_sight *out)
{
    uint64_t when = xenpy_trace_now();
    uint32_t rsp_prod = xenpy_load_acquire(peek->shared + XENPY_RSP_PROD);
    uint32_t req_prod = xenpy_load_acquire(peek->shared + XENPY_REQ_PROD);
    uint32_t asked = req_prod - peek->requests, answered = rsp_prod - peek->responses;
    uint32_t first, seen, answers;

    /* Absurd, or another ring in the same page: from here on then. */
    if ((int32_t)asked < 0 || (int32_t)answered < 0) {
        peek->requests = req_prod;
        peek->responses = rsp_prod;
        return 0;
    }
    first = answered < peek->entries ? peek->responses : rsp_prod - peek->entries;
    answers = xenpy_peek_copy(peek, when, ring, 1, first, rsp_prod, out);
    /* Those that were asked for and answered between two looks are gone. */
    first = (int32_t)(rsp_prod - peek->requests) > 0 ? rsp_prod : peek->requests;
    if ((int32_t)(req_prod - first) < 0)
        first = req_prod;
    if (req_prod - first > peek->entries)
        first = req_prod - peek->entries;
    seen = xenpy_peek_copy(peek, when, ring, 0, first, req_prod, out + answers);
    peek->asked += asked;
    peek->answered += answered;
    peek->lost_requests += asked - seen;
    peek->lost_responses += answered - answers;
    peek->requests = req_prod;
    peek->responses = rsp_prod;
    return answers + seen;
}

/*
 * Look at `count` rings, every `interval` ns, until CLOCK_MONOTONIC shows `until` or there is no room
 * for what one more look may bring.  Returns how many sights there are.
 */
static inline uint32_t xenpy_peek_run(struct xenpy_peek *peeks, uint32_t count, uint64_t interval,
                                      uint64_t until, struct xenpy_sight *out, uint32_t limit)
{
    struct timespec pause = {
        .tv_sec = (time_t)(interval / 1000000000u), .tv_nsec = (long)(interval % 1000000000u),
    };
    uint32_t seen = 0, room = 0, i;

    for (i = 0; i < count; i++)
        room += 2 * peeks[i].entries;
    while (seen + room <= limit) {
        for (i = 0; i < count; i++)
            seen += xenpy_peek_look(&peeks[i], (uint16_t)i, out + seen);
        if (xenpy_trace_now() >= until)
            break;
        nanosleep(&pause, NULL);
    }
    return seen;
}

#endif /* XENPY_PEEK_H */
