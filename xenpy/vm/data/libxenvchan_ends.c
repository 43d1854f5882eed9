/* SPDX-License-Identifier: MIT */
/*
 * The two ends of a stream over libxenvchan, to be measured beside ours.
 *
 *     libxenvchan_ends sink|echo DOMID PATH COUNT RING     listen for a client in DOMID
 *     libxenvchan_ends source|ping DOMID PATH COUNT RING   connect to the server in DOMID
 *
 * sink reads COUNT bytes and prints how many a second; ping sends a byte COUNT times, waits for
 * its echo, and prints how many round trips a second.  The clock starts with the first of them.
 */
#include <libxenvchan.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 65536 };

static char piece[PIECE];

static double now(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

static int get(struct libxenvchan *channel, size_t most)
{
    int count = libxenvchan_read(channel, piece, most);

    if (count <= 0) {
        perror("libxenvchan_read");
        exit(1);
    }
    return count;
}

static void put(struct libxenvchan *channel, size_t count)
{
    if (libxenvchan_send(channel, piece, count) != (int)count) {
        perror("libxenvchan_send");
        exit(1);
    }
}

static struct libxenvchan *connected(int domid, const char *path)
{
    struct libxenvchan *channel;

    for (int tries = 0; tries < 600; tries++) {
        channel = libxenvchan_client_init(NULL, domid, path);
        if (channel != NULL)
            return channel;
        usleep(100000);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct libxenvchan *channel;
    int64_t count, done = 0;
    double began = 0;
    size_t ring;
    int server;

    if (argc != 6)
        return 2;
    count = strtoll(argv[4], NULL, 10);
    ring = strtoul(argv[5], NULL, 10);
    server = !strcmp(argv[1], "sink") || !strcmp(argv[1], "echo");
    channel = server ? libxenvchan_server_init(NULL, atoi(argv[2]), argv[3], ring, ring)
                     : connected(atoi(argv[2]), argv[3]);
    if (channel == NULL) {
        perror("libxenvchan");
        return 1;
    }
    channel->blocking = 1;
    if (!strcmp(argv[1], "sink")) {
        int first = get(channel, PIECE);

        began = now();
        for (done = first; done < count;)
            done += get(channel, PIECE);
        printf("%.0f\n", (double)(count - first) / (now() - began));
    } else if (!strcmp(argv[1], "source")) {
        for (done = 0; done < count; done += PIECE)
            put(channel, PIECE);
        /* The other end closes once it has read everything. */
        while (libxenvchan_is_open(channel))
            usleep(1000);
    } else if (!strcmp(argv[1], "echo")) {
        for (done = 0; done < count; done++) {
            get(channel, 1);
            put(channel, 1);
        }
        while (libxenvchan_is_open(channel))
            usleep(1000);
    } else {
        put(channel, 1);
        get(channel, 1);
        began = now();
        for (done = 1; done < count; done++) {
            put(channel, 1);
            get(channel, 1);
        }
        printf("%.0f\n", (double)(count - 1) / (now() - began));
    }
    libxenvchan_close(channel);
    return 0;
}
