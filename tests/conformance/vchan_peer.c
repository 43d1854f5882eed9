/* SPDX-License-Identifier: MIT */
/*
 * A peer of vchan that is libxenvchan, for tests and measurements.
 *
 *   vchan_peer server LEFT RIGHT DOMID PATH WORK...      LEFT, RIGHT: bytes at least
 *   vchan_peer client DOMID PATH WORK...
 *
 * WORK is one of
 *
 *   echo CHUNK            write what was read, until the other side closes
 *   source BYTES CHUNK    write so many bytes, byte number n being n % 251; then wait until the
 *                         other side closes
 *   sink CHUNK            read until the other side closes; print how many bytes there were, and
 *                         how many reads had one that was not n % 251
 *   drain BYTES CHUNK     read so many bytes, look at none, close
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libxenvchan.h>

#define PERIOD 251

static void die(const char *what)
{
    fprintf(stderr, "vchan_peer: %s: %s\n", what, strerror(errno));
    exit(1);
}

static size_t number(const char *text)
{
    return strtoul(text, NULL, 0);
}

/* Returns 0 if the other side has closed. */
static int write_all(struct libxenvchan *ctrl, const char *data, size_t size)
{
    while (size) {
        int count = libxenvchan_write(ctrl, data, size);

        if (count < 0)
            return 0;
        data += count;
        size -= count;
    }
    return 1;
}

static void echo(struct libxenvchan *ctrl, char *buffer, size_t chunk)
{
    int count;

    while ((count = libxenvchan_read(ctrl, buffer, chunk)) > 0)
        if (!write_all(ctrl, buffer, count))
            return;
}

static void source(struct libxenvchan *ctrl, size_t bytes, size_t chunk)
{
    /* A piece that begins at any phase of the pattern lies in here. */
    char *pattern = malloc(chunk + PERIOD);
    size_t n, sent;

    if (!pattern)
        die("malloc");
    for (n = 0; n < chunk + PERIOD; n++)
        pattern[n] = n % PERIOD;
    for (sent = 0; sent < bytes; sent += n) {
        n = bytes - sent < chunk ? bytes - sent : chunk;
        if (!write_all(ctrl, pattern + sent % PERIOD, n))
            die("write");
    }
    while (libxenvchan_is_open(ctrl))
        libxenvchan_wait(ctrl);
    free(pattern);
}

static void sink(struct libxenvchan *ctrl, char *buffer, size_t chunk)
{
    char *pattern = malloc(chunk + PERIOD);
    size_t n, total = 0, wrong = 0;
    int count;

    if (!pattern)
        die("malloc");
    for (n = 0; n < chunk + PERIOD; n++)
        pattern[n] = n % PERIOD;
    while ((count = libxenvchan_read(ctrl, buffer, chunk)) > 0) {
        if (memcmp(buffer, pattern + total % PERIOD, count))
            wrong++;
        total += count;
    }
    printf("%zu bytes, %zu wrong\n", total, wrong);
    free(pattern);
}

static void drain(struct libxenvchan *ctrl, char *buffer, size_t bytes, size_t chunk)
{
    int count;

    while (bytes) {
        count = libxenvchan_read(ctrl, buffer, chunk);
        if (count <= 0)
            die("read");
        bytes -= count;
    }
}

int main(int argc, char **argv)
{
    struct libxenvchan *ctrl;
    char *buffer;
    size_t chunk;
    int work;

    if (argc > 7 && !strcmp(argv[1], "server")) {
        ctrl = libxenvchan_server_init(NULL, atoi(argv[4]), argv[5], number(argv[2]),
                                       number(argv[3]));
        work = 6;
    } else if (argc > 5 && !strcmp(argv[1], "client")) {
        ctrl = libxenvchan_client_init(NULL, atoi(argv[2]), argv[3]);
        work = 4;
    } else {
        fprintf(stderr, "see the comment in vchan_peer.c\n");
        return 2;
    }
    if (!ctrl)
        die(argv[1]);
    ctrl->blocking = -1;
    /* 2: no client has come yet. */
    while (libxenvchan_is_open(ctrl) == 2)
        libxenvchan_wait(ctrl);
    chunk = number(argv[argc - 1]);
    buffer = malloc(chunk);
    if (!buffer)
        die("malloc");
    if (!strcmp(argv[work], "echo"))
        echo(ctrl, buffer, chunk);
    else if (!strcmp(argv[work], "source"))
        source(ctrl, number(argv[work + 1]), chunk);
    else if (!strcmp(argv[work], "drain"))
        drain(ctrl, buffer, number(argv[work + 1]), chunk);
    else
        sink(ctrl, buffer, chunk);
    libxenvchan_close(ctrl);
    free(buffer);
    return 0;
}
