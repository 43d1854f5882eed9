/* SPDX-License-Identifier: MIT */
/*
 * Who looks into a ring while both halves are at work sees what stands there for its index, or
 * nothing: a request, or the answer that the backend has begun to write in its place; an answer, or
 * what the frontend writes there next.
 *
 *     peek REQUESTS
 *
 * Prints how many requests and answers were seen, how many that were something else by then, and of
 * how many.
 */
#include <sched.h>

/* Now and then the reader stops in the middle of it until the halves have come around. */
#define XENPY_PEEK_COPYING(i) ((i) == 3 && ++turn % 7 == 0 ? come_around() : (void)0)
static void come_around(void);
static unsigned int turn;

#include <xenpy/peek.h>

#include "mock_xen.h"

static uint64_t requests, answers, torn, in_place, over;
static const uint8_t *page;

static void come_around(void)
{
    uint32_t from = xenpy_load_acquire(page + XENPY_REQ_PROD);

    while (xenpy_load_acquire(page + XENPY_REQ_PROD) - from < 2 * 32 &&
           !__atomic_load_n(&over, __ATOMIC_ACQUIRE))
        sched_yield();
}

static void *reader(void *argument)
{
    static struct xenpy_sight out[2 * 32];
    struct rig *rig = argument;
    struct xenpy_peek peek = {
        .shared = rig->mock.memory, .entries = 32, .slot_size = 112, .request_size = 112,
        .response_size = 16,
    };

    while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) {
        uint32_t count = xenpy_peek_look(&peek, 0, out), i;

        for (i = 0; i < count; i++) {
            const struct blkif_request *request = (const void *)out[i].message;
            const struct blkif_response *response = (const void *)out[i].message;
            bool answered = response->id == out[i].index && response->operation == BLKIF_OP_READ;

            if (out[i].answer) {
                /* The frontend may have begun to write its next request there. */
                answers += answered;
                torn += !answered;
            } else if (request->id == out[i].index) {
                check(request->sector_number == (uint64_t)out[i].index % 1024 * 4);
                requests++;
            } else {
                check(answered);
                in_place++;
            }
        }
        sched_yield();
    }
    check(requests + in_place + peek.lost_requests == peek.asked);
    check(answers + torn + peek.lost_responses == peek.answered);
    return NULL;
}

int main(int argc, char **argv)
{
    uint32_t wanted = (uint32_t)strtoul(argv[1], NULL, 0), done = 0, i;
    static struct rig rig;
    pthread_t thread;

    check(argc == 2);
    rig_open(&rig, 1, 0);
    page = rig.mock.memory;
    rig_start(&rig);
    check(pthread_create(&thread, NULL, reader, &rig) == 0);
    while (done < wanted) {
        uint32_t count = 1 + done % 32;

        for (i = 0; i < count; i++) {
            struct blkif_request *request = rig_request(&rig);

            request->operation = BLKIF_OP_READ;
            request->nr_segments = 1;
            request->id = done + i;
            request->sector_number = (uint64_t)(done + i) % 1024 * 4;
            request->seg[0].gref = rig.first_page + i;
            request->seg[0].last_sect = 3;
        }
        rig_push(&rig);
        for (i = 0; i < count; i++)
            (void)rig_response(&rig);
        done += count;
    }
    __atomic_store_n(&over, 1, __ATOMIC_RELEASE);
    check(pthread_join(thread, NULL) == 0);
    check(rig_stop(&rig) == 0);
    rig_close(&rig);
    printf("%llu %llu %llu of %u\n", (unsigned long long)requests, (unsigned long long)answers,
           (unsigned long long)(in_place + torn), done);
    return 0;
}
