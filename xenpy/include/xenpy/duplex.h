/* SPDX-License-Identifier: MIT */
/*
 * Two byte rings and the wait for them, by vchan's rules (xen/include/public/io/libxenvchan.h):
 * read or wait, write or wait, each in one call.
 *
 * A side that finds nothing to read, or no room, sets a bit in `wanted`, looks again, and sleeps
 * until its port fires.  The other side, once it has written or read, takes the bit away and
 * notifies if it was set.
 *
 * Beside the peer's port, the handle has one that is bound to this domain itself, the bell: whoever
 * notifies its other end makes a call return that waits, so that none has to look round by itself.
 *
 * One thread may read while another writes.  They share a port, and two that read its descriptor
 * would take each other's events: whoever waits first waits for both (`leading`), and the other
 * is told to follow: -EAGAIN.  How a follower sleeps, and who wakes it, is the caller's; see
 * xenpy_duplex_may_sleep.
 */
#ifndef XENPY_DUPLEX_H
#define XENPY_DUPLEX_H

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <xenpy/calls.h>
#include <xenpy/ring_core.h>

#define XENPY_NOTIFY_WRITE 1u
#define XENPY_NOTIFY_READ 2u
#define XENPY_PEER_GONE 0u
#define XENPY_PEER_HERE 1u

/* As xenpy.runtime has them: XSA-332's remedy against a peer that notifies without end. */
#define XENPY_SPURIOUS_ALLOWED 8u
#define XENPY_HOLD_OFF_FIRST_NS 1000000l
#define XENPY_HOLD_OFF_LIMIT_NS 50000000l
/* How often in a row a peer may take back what it has said is there, until it is waited for. */
#define XENPY_DUPLEX_TRIES 16u
/* How often a call goes round before it returns -EINTR: a signal that comes while it does not wait
 * is seen by its caller only. */
#define XENPY_DUPLEX_ROUNDS 64u

struct xenpy_duplex {
    const struct xenpy_calls *calls;
    uint32_t port;
    uint32_t ended;     /* set by the caller: no call touches the page any more */
    uint32_t lost;      /* set by the caller: the peer is gone, whatever the page says */
    uint32_t fired;     /* events so far */
    uint32_t followers; /* threads that sleep, or are about to */
    uint32_t leading;   /* a thread waits for the port */
    uint32_t idle;      /* events since something was found */
    uint32_t wake;      /* set with -EINTR and errors only: the followers are to be woken */
    uint32_t in_seen;   /* what the last call to read has seen of `fired`, */
    uint32_t out_seen;  /* and the last one to write */
    size_t out_done;    /* how much the last call to write has put into the ring */

    struct xenpy_stream *incoming;
    const uint8_t *in_data;
    uint8_t *in_ours;
    const uint8_t *in_theirs;

    struct xenpy_stream *outgoing;
    uint8_t *out_data;
    uint8_t *out_ours;
    const uint8_t *out_theirs;

    const uint8_t *peer_live;
    uint8_t *wanted; /* what we want to be told of */
    uint8_t *asked;  /* what the peer wants to be told of */
};

/*
 * Ask to be told, and then look again.  As libxenvchan's request_notify, with a fence of its own:
 * what C promises of an atomic operation keeps later loads behind its load, not behind its store,
 * and a peer may look at the byte without changing it.
 */
static inline void xenpy_duplex_ask(struct xenpy_duplex *duplex, uint8_t bit)
{
    xenpy_fetch_or8(duplex->wanted, bit);
    xenpy_fence();
}

static inline void xenpy_duplex_tell(struct xenpy_duplex *duplex, uint8_t bit)
{
    __atomic_store_n(&duplex->idle, 0, __ATOMIC_RELAXED);
    if (xenpy_fetch_and8(duplex->asked, (uint8_t)~bit) & bit)
        duplex->calls->notify(duplex->calls->events, duplex->port);
}

/* A port that fires for nothing stays masked for a while: 20 times a second it may. */
static inline void xenpy_duplex_hold_off(uint32_t idle)
{
    uint32_t doublings = idle - XENPY_SPURIOUS_ALLOWED;
    struct timespec pause = {0, XENPY_HOLD_OFF_LIMIT_NS};

    if (doublings < 6)
        pause.tv_nsec = XENPY_HOLD_OFF_FIRST_NS << doublings;
    nanosleep(&pause, NULL);
}

static inline int xenpy_duplex_poll(const struct xenpy_duplex *duplex, int timeout)
{
    struct pollfd ready = {duplex->calls->events_fd, POLLIN, 0};
    int count = poll(&ready, 1, timeout);

    return count > 0 ? 0 : count == 0 ? -ETIMEDOUT : -errno;
}

/* Take the events, once there is one.  0; -EINTR: the bell was among them; or -errno. */
static inline int xenpy_duplex_event(struct xenpy_duplex *duplex, int timeout)
{
    const struct xenpy_calls *calls = duplex->calls;
    /* A handle that waits by itself spares a system call, unless it may not wait for ever. */
    int error = timeout >= 0 ? xenpy_duplex_poll(duplex, timeout) : 0;
    uint32_t ports[2], idle;
    int got;

    if (error)
        return error;
    got = calls->pending(calls->events, ports, 2);
    if (got == 0 && timeout < 0) {
        error = xenpy_duplex_poll(duplex, timeout);
        if (error)
            return error;
        got = calls->pending(calls->events, ports, 2);
    }
    if (got < 0)
        return -errno;
    for (int i = 0; i < got; i++) {
        if (ports[i] != duplex->port) {
            error = -EINTR;
            continue;
        }
        idle = __atomic_add_fetch(&duplex->idle, 1, __ATOMIC_RELAXED);
        if (idle > XENPY_SPURIOUS_ALLOWED)
            xenpy_duplex_hold_off(idle);
        __atomic_add_fetch(&duplex->fired, 1, __ATOMIC_SEQ_CST);
    }
    if (got > 0 && calls->unmask(calls->events, ports, (uint32_t)got) < 0)
        return -errno;
    return error;
}

/*
 * Until an event has come since `fired` was `seen`.  0: look again; -EAGAIN: another thread waits;
 * -EINTR: look again, and round: for a signal, for why the bell was rung, for followers to be
 * woken, for how late it is, if there is a time, or if the peer notifies without end; -ETIMEDOUT;
 * -errno.
 *
 * `timeout`: milliseconds; -1: for ever.
 */
static inline int xenpy_duplex_wait(struct xenpy_duplex *duplex, uint32_t seen, int timeout)
{
    int error = 0;

    if (__atomic_exchange_n(&duplex->leading, 1, __ATOMIC_SEQ_CST))
        return -EAGAIN;
    if (__atomic_load_n(&duplex->fired, __ATOMIC_SEQ_CST) == seen)
        error = xenpy_duplex_event(duplex, timeout);
    __atomic_store_n(&duplex->leading, 0, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&duplex->followers, __ATOMIC_SEQ_CST))
        __atomic_store_n(&duplex->wake, 1, __ATOMIC_RELAXED);
    else if (timeout < 0 &&
             __atomic_load_n(&duplex->idle, __ATOMIC_RELAXED) <= XENPY_SPURIOUS_ALLOWED)
        return error;
    return error ? error : -EINTR;
}

/*
 * For a thread that was told to follow, and is counted in `followers` by now: may it sleep until
 * it is woken?  Not if what it would be woken by has happened: an event, which may be its own, or
 * that nobody waits for the port any more.
 *
 * Whoever waited has changed `fired` and `leading` and then looks at `followers`, which sets
 * `wake`; a follower changes that and then looks at those.  Whoever is told of less than success
 * by one of the calls below and finds `wake` set wakes them.
 */
static inline int xenpy_duplex_may_sleep(struct xenpy_duplex *duplex, uint32_t seen)
{
    return __atomic_load_n(&duplex->fired, __ATOMIC_SEQ_CST) == seen &&
           __atomic_load_n(&duplex->leading, __ATOMIC_SEQ_CST);
}

static inline void xenpy_duplex_follow(struct xenpy_duplex *duplex, int32_t by)
{
    __atomic_add_fetch(&duplex->followers, (uint32_t)by, __ATOMIC_SEQ_CST);
}

/* 0; -ECONNRESET: the peer has gone; -EPROTO: its byte means nothing. */
static inline int xenpy_duplex_gone(const struct xenpy_duplex *duplex)
{
    uint8_t live = xenpy_load_acquire8(duplex->peer_live);

    if (live == XENPY_PEER_GONE || __atomic_load_n(&duplex->lost, __ATOMIC_ACQUIRE))
        return -ECONNRESET;
    return live == XENPY_PEER_HERE ? 0 : -EPROTO;
}

/*
 * Take up to `limit` bytes, 1 at least if that is not 0.  Returns how many; 0: the peer has gone,
 * and everything was read; -EPROTO: it has put nonsense into the page; -EPIPE: it was ended; or
 * as xenpy_duplex_wait, and `in_seen` is for xenpy_duplex_may_sleep then.
 */
static inline int64_t xenpy_duplex_read(struct xenpy_duplex *duplex, uint8_t *out, size_t limit,
                                        int timeout)
{
    uint32_t tries = 0;

    if (__atomic_load_n(&duplex->ended, __ATOMIC_RELAXED))
        return -EPIPE;
    if (limit == 0)
        return 0;
    for (uint32_t round = 0; round < XENPY_DUPLEX_ROUNDS; round++) {
        int64_t count;
        int gone, error;

        duplex->in_seen = __atomic_load_n(&duplex->fired, __ATOMIC_SEQ_CST);
        count = xenpy_stream_read(duplex->incoming, duplex->in_data, duplex->in_ours,
                                  duplex->in_theirs, out, limit);
        if (count > 0)
            xenpy_duplex_tell(duplex, XENPY_NOTIFY_READ);
        if (count != 0)
            return count;
        xenpy_duplex_ask(duplex, XENPY_NOTIFY_WRITE);
        /* In this order: what a peer wrote before it went is found after that was seen. */
        gone = xenpy_duplex_gone(duplex);
        count = xenpy_stream_queued(duplex->incoming, duplex->in_theirs);
        if (count < 0)
            return count;
        if (count > 0 && tries++ < XENPY_DUPLEX_TRIES)
            continue;
        if (gone)
            return gone == -ECONNRESET ? 0 : gone;
        error = xenpy_duplex_wait(duplex, duplex->in_seen, timeout);
        if (error)
            return error;
    }
    return -EINTR;
}

/*
 * Put all of `length` bytes.  0: they are in the ring; otherwise `out_done` of them are.
 * -ECONNRESET: the peer has gone; or as xenpy_duplex_read, and `out_seen`.
 */
static inline int xenpy_duplex_write(struct xenpy_duplex *duplex, const uint8_t *data,
                                     size_t length, int timeout)
{
    uint32_t tries = 0;

    duplex->out_done = 0;
    if (__atomic_load_n(&duplex->ended, __ATOMIC_RELAXED))
        return -EPIPE;
    for (uint32_t round = 0; round < XENPY_DUPLEX_ROUNDS; round++) {
        int64_t count;
        int error;

        duplex->out_seen = __atomic_load_n(&duplex->fired, __ATOMIC_SEQ_CST);
        error = xenpy_duplex_gone(duplex);
        if (error)
            return error;
        count = xenpy_stream_write(duplex->outgoing, duplex->out_data, duplex->out_ours,
                                   duplex->out_theirs, data + duplex->out_done,
                                   length - duplex->out_done);
        if (count < 0)
            return (int)count;
        duplex->out_done += (size_t)count;
        if (count > 0) {
            xenpy_duplex_tell(duplex, XENPY_NOTIFY_WRITE);
            /* Or it would sleep after so many that a quick peer has read, and room with them. */
            tries = 0;
        }
        if (duplex->out_done == length)
            return 0;
        xenpy_duplex_ask(duplex, XENPY_NOTIFY_READ);
        count = xenpy_stream_unread(duplex->outgoing, duplex->out_theirs);
        if (count < 0)
            return (int)count;
        if (count < duplex->outgoing->size && tries++ < XENPY_DUPLEX_TRIES)
            continue;
        tries = 0;
        error = xenpy_duplex_wait(duplex, duplex->out_seen, timeout);
        if (error)
            return error;
    }
    return -EINTR;
}

/* Until the peer has read everything; then 0.  Otherwise as xenpy_duplex_write. */
static inline int xenpy_duplex_drain(struct xenpy_duplex *duplex, int timeout)
{
    int64_t least = duplex->outgoing->size;

    if (__atomic_load_n(&duplex->ended, __ATOMIC_RELAXED))
        return -EPIPE;
    for (uint32_t round = 0; round < XENPY_DUPLEX_ROUNDS; round++) {
        int64_t count;
        int gone, error;

        duplex->out_seen = __atomic_load_n(&duplex->fired, __ATOMIC_SEQ_CST);
        xenpy_duplex_ask(duplex, XENPY_NOTIFY_READ);
        gone = xenpy_duplex_gone(duplex);
        count = xenpy_stream_unread(duplex->outgoing, duplex->out_theirs);
        if (count <= 0)
            return (int)count;
        if (gone)
            return gone;
        if (count < least) {
            /* It reads, bit by bit: its events are none for nothing. */
            least = count;
            __atomic_store_n(&duplex->idle, 0, __ATOMIC_RELAXED);
        }
        error = xenpy_duplex_wait(duplex, duplex->out_seen, timeout);
        if (error)
            return error;
    }
    return -EINTR;
}

#endif /* XENPY_DUPLEX_H */
