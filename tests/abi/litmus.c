/* SPDX-License-Identifier: MIT */
/*
 * Is a wake-up ever lost?  Two processes, one shared mapping, the functions of ring_core.h.
 *
 * In each round the frontend publishes a request while the backend arms its event and looks
 * a last time.  Either the frontend must be told to notify or the backend must see the
 * request; if neither happens, a real backend would sleep for ever.  This is the
 * store-buffering litmus: both sides store, then load what the other stores, and only the
 * full fence between the two forbids that both load the old value.
 *
 * usage: litmus ROUNDS.  Prints "ROUND" of the first lost wake-up and exits 1, or exits 0.
 */
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <xenpy/ring_core.h>

struct shared {
    uint8_t ring[4096];
    _Alignas(64) volatile uint64_t arrived[2][8];
    _Alignas(64) volatile int more;
    _Alignas(64) volatile int notify;
};

static uint64_t phase;

/* Both processes leave at the same moment.  `arrived` only grows. */
static void meet(struct shared *shared, int side)
{
    uint64_t spins = 0;

    phase++;
    __atomic_store_n(&shared->arrived[side][0], phase, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&shared->arrived[!side][0], __ATOMIC_SEQ_CST) < phase)
        if (++spins > 10000) {
            sched_yield();    /* more processes than processors */
            spins = 0;
        }
}

/* A few instructions more or less on one side, so that the two race in every alignment. */
static void stagger(uint64_t steps)
{
    while (steps--)
        __asm__ __volatile__("" ::: "memory");
}

int main(int argc, char **argv)
{
    uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000000;
    struct xenpy_ring ring = { .entries = 32, .request_size = 112, .response_size = 16,
                               .slot_size = 112 };
    struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint8_t request[112] = { 0 }, response[16] = { 0 };
    pid_t child;
    int status = 0;

    if (shared == MAP_FAILED)
        return 2;
    xenpy_store_release(shared->ring + XENPY_REQ_EVENT, 1);
    xenpy_store_release(shared->ring + XENPY_RSP_EVENT, 1);
    child = fork();
    if (child < 0)
        return 2;
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (uint64_t round = 0; round < rounds; round++) {
            meet(shared, 1);
            stagger(round % 7);
            shared->more = xenpy_back_final_check(&ring, shared->ring) != 0;
            meet(shared, 1);
            if (xenpy_back_take(&ring, shared->ring, request, 1) != 1)
                _exit(3);
            xenpy_back_push(&ring, shared->ring, response, 1);
            meet(shared, 1);
        }
        _exit(0);
    }
    for (uint64_t round = 0; round < rounds; round++) {
        meet(shared, 0);
        stagger(round / 7 % 7);
        shared->notify = (int)xenpy_front_put(&ring, shared->ring, request, 1);
        meet(shared, 0);
        if (!shared->notify && !shared->more) {
            printf("%llu\n", (unsigned long long)round);
            kill(child, SIGKILL);
            waitpid(child, NULL, 0);
            return 1;
        }
        meet(shared, 0);
        if (xenpy_front_take(&ring, shared->ring, response, 1) != 1)
            return 3;
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}
