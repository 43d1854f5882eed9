/* SPDX-License-Identifier: MIT */
/*
 * The engine in a process of its own, so that what goes wrong in it, such as a SIGBUS on a file
 * that somebody cut off, costs one disk.
 *
 *     xenpy-block-worker PARENT STATE_FD DISK_FD TRACE_FD < struct block_worker
 *
 * Says "open 0" on its standard output when it serves, or "open ERRNO WHAT", and "end ERRNO" when
 * it has let go of everything.  It dies with PARENT; a stop is state->stop and SIGRTMIN.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <xenpy/calls.h>
#include <xenpy/quiet.h>
#include <xenpy/trace.h>

#include "engine.h"

static const struct block_state *served;
static int events_fd;

/* Wakes the engine out of its read of an event, or keeps it from falling asleep in it. */
static void on_stop(int number)
{
    (void)number;
    if (__atomic_load_n(&served->stop, __ATOMIC_ACQUIRE))
        fcntl(events_fd, F_SETFL, O_NONBLOCK);
}

static void expect_stop(const struct block_state *state, int fd)
{
    struct sigaction action = { .sa_handler = on_stop }; /* no SA_RESTART */
    sigset_t stops;

    served = state;
    events_fd = fd;
    sigaction(SIGRTMIN, &action, NULL);
    sigemptyset(&stops);
    sigaddset(&stops, SIGRTMIN);
    sigprocmask(SIG_UNBLOCK, &stops, NULL);
}

/* What the daemon's orderly end, or its death, ends: nobody else does. */
static void settle(pid_t parent)
{
    struct rlimit none = { 0, 0 };

    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGQUIT, SIG_IGN);
    signal(SIGUSR1, SIG_IGN); /* the daemon's statistics, sent to its whole unit */
    signal(SIGUSR2, SIG_IGN);
    signal(SIGALRM, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* pwritev says EFBIG then */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        exit(1);
    /* Guest data belongs into no core file. */
    setrlimit(RLIMIT_CORE, &none);
    prctl(PR_SET_DUMPABLE, 0);
}

static void *shared(const char *fd, size_t size)
{
    void *address = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(fd), 0);

    return address == MAP_FAILED ? NULL : address;
}

static int give_up(const char *what)
{
    printf("open %d %s\n", errno, what);
    fflush(stdout);
    return 1;
}

int main(int argc, char **argv)
{
    struct block_worker worker;
    struct block_state *state;
    struct xenpy_calls calls;
    xengnttab_handle *grants;
    xenevtchn_handle *events;
    struct block_disk *disk;
    struct xenpy_trace *trace;
    void *ring;
    int port, result;

    if (argc != 5 || fread(&worker, sizeof(worker), 1, stdin) != 1) {
        fputs("xenpy-block-worker is started by `xenpy serve block`\n", stderr);
        return 2;
    }
    settle(atoi(argv[1]));
    state = shared(argv[2], sizeof(*state));
    disk = shared(argv[3], sizeof(*disk));
    trace = shared(argv[4], sizeof(*trace));
    if (!state || !disk || !trace)
        return give_up("mmap");
    grants = xengnttab_open(xenpy_quiet_logger(), 0);
    if (!grants)
        return give_up("gnttab_open");
    events = xenevtchn_open(xenpy_quiet_logger(), 0);
    if (!events)
        return give_up("evtchn_open");
    /* Before the first byte of the guest's is looked at: this handle is good for its ports only.
     * Linux knows no handle restricted to domain 0 (EINVAL), the frontend of a loopback. */
    if (worker.config.domid && xenevtchn_restrict(events, (domid_t)worker.config.domid) < 0)
        return give_up("evtchn_restrict");
    xenpy_calls_init(&calls, grants, events);
    ring = calls.map(grants, worker.config.ring_pages, worker.config.domid, worker.refs,
                     PROT_READ | PROT_WRITE);
    if (!ring)
        return give_up("map_grant_refs");
    worker.config.start = block_ring_start(ring);
    port = xenevtchn_bind_interdomain(events, worker.config.domid, worker.remote_port);
    if (port < 0)
        return give_up("bind_interdomain");
    worker.config.port = (uint32_t)port;
    expect_stop(state, calls.events_fd);
    puts("open 0");
    fflush(stdout);
    result = block_engine_run(&worker.config, state, &calls, ring, disk, trace, NULL);
    calls.unmap(grants, ring, worker.config.ring_pages);
    xenevtchn_close(events);
    xengnttab_close(grants);
    printf("end %d\n", -result);
    fflush(stdout);
    return 0;
}
