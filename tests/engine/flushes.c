/* SPDX-License-Identifier: MIT */
/*
 * Queues of one store flush at the same moment.  Of a lost write the kernel tells one caller; here
 * a store does the same, and no flush that ends after that may succeed.  Then a process is killed
 * in the middle of its flush: what it was told nobody knows.
 */
#include <signal.h>
#include <sys/wait.h>

#include "mock_xen.h"

#define QUEUES 4
#define ROUNDS 2000

static int inside, untold, most;

/* Whether two are in here at a time; one of them is told. */
static int flush_slowly(struct block_store *store)
{
    int now = __atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST);

    (void)store;
    if (now > __atomic_load_n(&most, __ATOMIC_RELAXED))
        __atomic_store_n(&most, now, __ATOMIC_RELAXED);
    sched_yield();
    __atomic_sub_fetch(&inside, 1, __ATOMIC_SEQ_CST);
    return __atomic_exchange_n(&untold, 0, __ATOMIC_SEQ_CST) ? -EIO : 0;
}

static int flush_for_ever(struct block_store *store)
{
    (void)store;
    check(write(STDOUT_FILENO, "f", 1) == 1);
    for (;;)
        pause();
}

static const struct block_store_calls slow = { .flush = flush_slowly };
static const struct block_store_calls stuck = { .flush = flush_for_ever };

static void *queue(void *argument)
{
    struct block_store store = { .calls = &slow, .disk = argument };
    bool told = false;
    int round;

    for (round = 0; round < ROUNDS; round++) {
        if (block_flush_once(&store) < 0)
            told = true;
        else
            check(!told);
    }
    check(told);
    return NULL;
}

int main(void)
{
    struct block_disk *disk = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                                   -1, 0);
    struct block_store store = { .calls = &slow, .disk = disk };
    pthread_t threads[QUEUES];
    int pipes[2], status;
    pid_t child;
    char byte;
    int n;

    check(disk != MAP_FAILED);
    block_disk_init(disk);
    untold = 1;
    for (n = 0; n < QUEUES; n++)
        check(pthread_create(&threads[n], NULL, queue, disk) == 0);
    for (n = 0; n < QUEUES; n++)
        check(pthread_join(threads[n], NULL) == 0);
    check(most == 1);

    block_disk_init(disk);
    check(pipe(pipes) == 0);
    child = fork();
    check(child >= 0);
    if (child == 0) {
        store.calls = &stuck;
        dup2(pipes[1], STDOUT_FILENO);
        block_flush_once(&store);
    }
    check(read(pipes[0], &byte, 1) == 1);
    kill(child, SIGKILL);
    check(waitpid(child, &status, 0) == child);
    check(!block_has_lost(disk));
    check(block_flush_once(&store) == -EIO);
    check(block_flush_once(&store) == -EIO);
    check(block_has_lost(disk));
    return 0;
}
