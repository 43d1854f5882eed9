/* SPDX-License-Identifier: MIT */
/*
 * Two sides of duplex.h in one process, four threads: on each side one that reads and one that
 * writes, which share the side's port.  Events come through a mock that behaves as Xen does: a
 * port that has fired is masked, and what comes meanwhile is pending.  Nobody waits for a time,
 * so that an event that is lost, or a follower that nobody wakes, is a program that never ends.
 *
 *     duplex LEFT_SIZE RIGHT_SIZE LEFT_BYTES RIGHT_BYTES SEED
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include <xenpy/duplex.h>

struct port {
    pthread_mutex_t lock;
    int fd;
    bool masked, pending;
    struct port *peer;
};

struct side {
    struct xenpy_duplex duplex;
    struct xenpy_calls calls;
    struct xenpy_stream in, out;
    struct port port;
    pthread_mutex_t lock;
    pthread_cond_t news;
    unsigned long followed;
};

/* What both sides share: indices, and the bytes of vchan's page. */
static struct {
    uint32_t cons[2], prod[2];
    uint8_t live[2], notify[2];
} page;
static uint8_t *rings[2];
static struct side sides[2];
static size_t bytes[2];
static unsigned seed;

static void check(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static void fire(struct port *port)
{
    uint64_t one = 1;

    if (port->masked) {
        port->pending = true;
        return;
    }
    port->masked = true;
    check(write(port->fd, &one, sizeof(one)) == sizeof(one), "eventfd");
}

static int notify(void *events, uint32_t port)
{
    struct port *peer = ((struct port *)events)->peer;

    check(port == 7, "another port");
    pthread_mutex_lock(&peer->lock);
    fire(peer);
    pthread_mutex_unlock(&peer->lock);
    return 0;
}

static int pending(void *events, uint32_t *ports, uint32_t limit)
{
    uint64_t count;

    check(limit == 2, "there may be the bell");
    check(read(((struct port *)events)->fd, &count, sizeof(count)) == sizeof(count), "eventfd");
    check(count == 1, "it fired while it was masked");
    ports[0] = 7;
    return 1;
}

static int unmask(void *events, const uint32_t *ports, uint32_t count)
{
    struct port *port = events;

    check(count == 1 && ports[0] == 7, "another port");
    pthread_mutex_lock(&port->lock);
    port->masked = false;
    if (port->pending) {
        port->pending = false;
        fire(port);
    }
    pthread_mutex_unlock(&port->lock);
    return 0;
}

static void set_up(int number, size_t left, size_t right)
{
    struct side *side = &sides[number];
    struct xenpy_duplex *duplex = &side->duplex;
    /* Side 0 reads the left ring and writes the right one. */
    int from = number, to = !number;
    size_t sizes[2] = {left, right};

    pthread_mutex_init(&side->lock, NULL);
    pthread_cond_init(&side->news, NULL);
    pthread_mutex_init(&side->port.lock, NULL);
    side->port.fd = eventfd(0, 0);
    side->port.peer = &sides[!number].port;
    side->calls = (struct xenpy_calls){.events = &side->port, .events_fd = side->port.fd,
                                       .notify = notify, .pending = pending, .unmask = unmask};
    side->in.size = (uint32_t)sizes[from];
    side->out.size = (uint32_t)sizes[to];
    page.live[number] = 1;
    duplex->calls = &side->calls;
    duplex->port = 7;
    duplex->incoming = &side->in;
    duplex->in_data = rings[from];
    duplex->in_ours = (uint8_t *)&page.cons[from];
    duplex->in_theirs = (uint8_t *)&page.prod[from];
    duplex->outgoing = &side->out;
    duplex->out_data = rings[to];
    duplex->out_ours = (uint8_t *)&page.prod[to];
    duplex->out_theirs = (uint8_t *)&page.cons[to];
    duplex->peer_live = &page.live[!number];
    duplex->wanted = &page.notify[number];
    duplex->asked = &page.notify[!number];
}

static uint8_t pattern(size_t place)
{
    return (uint8_t)(place * 167 + (place >> 8));
}

static void look_round(struct side *side, int error, uint32_t seen)
{
    check(error == 0 || error == -EAGAIN || error == -EINTR, "an error");
    if (__atomic_exchange_n(&side->duplex.wake, 0, __ATOMIC_RELAXED)) {
        pthread_mutex_lock(&side->lock);
        pthread_cond_broadcast(&side->news);
        pthread_mutex_unlock(&side->lock);
    }
    if (error != -EAGAIN)
        return;
    pthread_mutex_lock(&side->lock);
    xenpy_duplex_follow(&side->duplex, 1);
    if (xenpy_duplex_may_sleep(&side->duplex, seen)) {
        pthread_cond_wait(&side->news, &side->lock);
        side->followed++;
    }
    xenpy_duplex_follow(&side->duplex, -1);
    pthread_mutex_unlock(&side->lock);
}

static void *reads(void *argument)
{
    struct side *side = argument;
    unsigned dice = seed + (unsigned)(side - sides);
    uint8_t *buffer = malloc(1 << 16);
    size_t place = 0, total = bytes[side - sides];

    while (place < total) {
        size_t most = (size_t)rand_r(&dice) % (rand_r(&dice) % 4 ? 100 : 1 << 16) + 1;
        int64_t count;

        most = most < total - place ? most : total - place;
        count = xenpy_duplex_read(&side->duplex, buffer, most, -1);
        look_round(side, count < 0 ? (int)count : 0, side->duplex.in_seen);
        check(count != 0, "the other side has gone");
        for (int64_t i = 0; i < count; i++)
            check(buffer[i] == pattern(place++), "another byte");
    }
    free(buffer);
    return NULL;
}

static void *writes(void *argument)
{
    struct side *side = argument;
    unsigned dice = seed + 2 + (unsigned)(side - sides);
    uint8_t *buffer = malloc(1 << 16);
    size_t place = 0, total = bytes[side == sides];
    int error;

    while (place < total) {
        size_t length = (size_t)rand_r(&dice) % (rand_r(&dice) % 4 ? 100 : 1 << 16) + 1;
        size_t done = 0;

        length = length < total - place ? length : total - place;
        for (size_t i = 0; i < length; i++)
            buffer[i] = pattern(place + i);
        do {
            error = xenpy_duplex_write(&side->duplex, buffer + done, length - done, -1);
            look_round(side, error, side->duplex.out_seen);
            done += side->duplex.out_done;
        } while (error);
        check(done == length, "not all of it");
        place += length;
    }
    do {
        error = xenpy_duplex_drain(&side->duplex, -1);
        look_round(side, error, side->duplex.out_seen);
    } while (error);
    free(buffer);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[4];

    check(argc == 6, "duplex LEFT_SIZE RIGHT_SIZE LEFT_BYTES RIGHT_BYTES SEED");
    seed = (unsigned)strtoul(argv[5], NULL, 10);
    for (int number = 0; number < 2; number++) {
        rings[number] = malloc(strtoul(argv[1 + number], NULL, 10));
        bytes[number] = strtoul(argv[3 + number], NULL, 10);
    }
    for (int number = 0; number < 2; number++)
        set_up(number, strtoul(argv[1], NULL, 10), strtoul(argv[2], NULL, 10));
    for (int number = 0; number < 4; number++)
        pthread_create(&threads[number], NULL, number & 1 ? writes : reads, &sides[number >> 1]);
    for (int number = 0; number < 4; number++)
        pthread_join(threads[number], NULL);
    printf("%u and %u events, %lu and %lu times followed\n", sides[0].duplex.fired,
           sides[1].duplex.fired, sides[0].followed, sides[1].followed);
    return 0;
}
