/* SPDX-License-Identifier: MIT */
/*
 * R3 of the hostile-peer checklist: a thread rewrites the slots, and the segments of indirect
 * requests, all the time while the engine reads them (XSA-155).  Whatever it reads must be one
 * request or another, checked: every one is answered, the disk is touched within its bounds only,
 * and nothing stays mapped.  The sanitizers see to the rest.
 *
 *     hostile REQUESTS SEED PERSISTENT
 */
#include "mock_xen.h"

static bool ended;

static void *scribble(void *argument)
{
    static const uint8_t operations[] = { 0, 1, 2, 3, 4, 5, 6, 0, 1, 6, 255 };
    struct rig *rig = argument;
    uint64_t seed = 99;
    /* Everything behind the ring's four indices, and the page of segments behind the ring. */
    uint8_t *slots = rig->mock.memory + 64;

    while (!__atomic_load_n(&ended, __ATOMIC_RELAXED)) {
        uint32_t slot = below(&seed, 32) * 112;

        switch (below(&seed, 8)) {
        case 0:
            __atomic_store_n(&slots[slot + 2 + below(&seed, 110)], (uint8_t)draw(&seed),
                             __ATOMIC_RELAXED);
            break;
        case 1:
            __atomic_store_n(&rig->mock.memory[4096 + below(&seed, 4096)], (uint8_t)draw(&seed),
                             __ATOMIC_RELAXED);
            break;
        case 2:
            __atomic_store_n(&slots[slot + 1], 255, __ATOMIC_RELAXED);
            break;
        case 3:
            __atomic_store_n(&slots[slot + 1], (uint8_t)below(&seed, 13), __ATOMIC_RELAXED);
            break;
        default:
            __atomic_store_n(&slots[slot], operations[below(&seed, sizeof(operations))],
                             __ATOMIC_RELAXED);
        }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    uint64_t wanted = strtoull(argv[1], NULL, 0), seed = strtoull(argv[2], NULL, 0), done = 0, i;
    static struct rig rig;
    pthread_t scribbler;
    struct stat status;

    check(argc == 4);
    rig_open(&rig, 1, (strtoul(argv[3], NULL, 0) ? BLOCK_PERSISTENT : 0) | BLOCK_DISCARD | BLOCK_BARRIER);
    for (i = 1; i < PAGES; i += 1 + below(&seed, 25))
        rig.mock.granted[i] = (uint8_t)below(&seed, 3);
    /* A frontend may well have its ring overwritten; here that would end the test. */
    rig.mock.granted[0] = NOT_GRANTED;
    rig.mock.granted[1] = READ_WRITE;
    for (i = 0; i < 512; i++) {
        uint32_t *segment = (uint32_t *)(void *)(rig.mock.memory + 4096 + 8 * i);

        segment[0] = below(&seed, PAGES);
        segment[1] = 7 << 8;
    }
    rig_start(&rig);
    check(pthread_create(&scribbler, NULL, scribble, &rig) == 0);
    while (done < wanted) {
        uint32_t count = 1 + below(&seed, 32), n;

        for (n = 0; n < count; n++) {
            uint8_t *slot = (uint8_t *)RING_GET_REQUEST(&rig.ring, rig.ring.req_prod_pvt++);
            uint32_t words[28] = { 0 }, at;

            /* A good request, but for grants that do not exist. */
            words[0] = below(&seed, 4) | (1 + below(&seed, 11)) << 8;
            words[4] = below(&seed, DISK_SECTORS - 88);
            for (at = 6; at < 28; at += 2) {
                words[at] = below(&seed, PAGES);
                words[at + 1] = 7 << 8;
            }
            if (below(&seed, 4) == 0) {
                /* An indirect one; its segments are in the page behind the ring. */
                words[0] = BLKIF_OP_INDIRECT | below(&seed, 2) << 8 | (1 + below(&seed, 32)) << 16;
                words[7] = 1;
            }
            for (at = 0; at < 28; at++)
                __atomic_store_n((uint32_t *)(void *)slot + at, words[at], __ATOMIC_RELAXED);
        }
        rig_push(&rig);
        while (__atomic_load_n(&rig.ring.sring->rsp_prod, __ATOMIC_ACQUIRE) != rig.pushed) {
            check(__atomic_load_n(&rig.result, __ATOMIC_RELAXED) == 0);
            sched_yield();
        }
        rig.ring.rsp_cons = rig.pushed;
        done += count;
    }
    __atomic_store_n(&ended, true, __ATOMIC_RELAXED);
    check(pthread_join(scribbler, NULL) == 0);
    check(rig_stop(&rig) == 0);
    check(rig.state->counters.requests == done);
    check(rig.state->counters.errors >= rig.state->counters.refused);
    check(fstat(rig.disk, &status) == 0 && status.st_size == DISK_SECTORS * 512);
    printf("%llu requests, %llu refused, %llu errors, %llu copied, %llu mapped\n",
           (unsigned long long)done, (unsigned long long)rig.state->counters.refused,
           (unsigned long long)rig.state->counters.errors,
           (unsigned long long)rig.state->counters.grants_copied,
           (unsigned long long)rig.state->counters.grants_mapped);
    rig_close(&rig);
    return 0;
}
