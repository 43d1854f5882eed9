/* SPDX-License-Identifier: MIT */
/*
 * libxengnttab and libxenevtchn for a program whose Xen is a FakeXen in a test's process: linked
 * into the program, it takes the place of the libraries.  Each call is a request over a socket
 * (conformance/fake_process.py answers); pages are those of the fake's memfd, mapped.
 *
 * FAKE_XEN is the socket's path, FAKE_XEN_PAGES the memfd's number.
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <xenevtchn.h>
#include <xengnttab.h>

#define PAGE 4096
#define MOST 2048

enum {
    SHARE, UNSHARE, MAP, UNMAP, EVTCHN_OPEN, EVTCHN_CLOSE, BIND_UNBOUND, BIND_INTERDOMAIN, UNBIND,
    NOTIFY, PENDING, UNMASK,
};

struct xenevtchn_handle {
    int64_t number;
    int fd;
};

struct held {
    struct held *next;
    void *address;
    int64_t number;
};

/* Both kinds of handle of libxengnttab. */
struct xengntdev_handle {
    int release;
    struct held *held;
};

static int door(void)
{
    static int fd = -1;
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    if (fd < 0) {
        strncpy(address.sun_path, getenv("FAKE_XEN"), sizeof(address.sun_path) - 1);
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
            abort();
    }
    return fd;
}

/* Numbers out, numbers in.  Returns how many came behind the status, or -1 with errno. */
static int ask(const int64_t *request, int count, int64_t *answer, int *fd)
{
    static int64_t words[MOST + 1];
    char control[CMSG_SPACE(sizeof(int))];
    struct iovec vector = { .iov_base = words, .iov_len = sizeof(words) };
    struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
                              .msg_controllen = sizeof(control) };
    ssize_t length;

    if (send(door(), request, count * sizeof(*request), 0) < 0)
        abort();
    length = recvmsg(door(), &message, MSG_CMSG_CLOEXEC);
    if (length < (ssize_t)sizeof(*words))
        abort();
    if (words[0]) {
        errno = words[0];
        return -1;
    }
    if (fd && CMSG_FIRSTHDR(&message))
        memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(*fd));
    if (answer)
        memcpy(answer, words + 1, length - sizeof(*words));
    return length / sizeof(*words) - 1;
}

static void *mapped(struct xengntdev_handle *handle, int64_t number, const int64_t *pages,
                    uint32_t count, int prot)
{
    struct held *held = malloc(sizeof(*held));
    char *base = mmap(NULL, (size_t)count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t i;

    for (i = 0; i < count; i++)
        mmap(base + (size_t)i * PAGE, PAGE, prot, MAP_SHARED | MAP_FIXED,
             atoi(getenv("FAKE_XEN_PAGES")), pages[i] * PAGE);
    held->address = base;
    held->number = number;
    held->next = handle->held;
    handle->held = held;
    return base;
}

static int give_back(struct xengntdev_handle *handle, void *address, uint32_t count)
{
    struct held **where, *held;
    int64_t request[2] = { handle->release };

    for (where = &handle->held; (held = *where) != NULL; where = &held->next) {
        if (held->address != address)
            continue;
        request[1] = held->number;
        *where = held->next;
        free(held);
        munmap(address, (size_t)count * PAGE);
        return ask(request, 2, NULL, NULL) < 0 ? -1 : 0;
    }
    errno = EINVAL;
    return -1;
}

static struct xengntdev_handle *opened(int release)
{
    struct xengntdev_handle *handle = calloc(1, sizeof(*handle));

    handle->release = release;
    return handle;
}

/* What libxenvchan has unmapped by itself is given back here, as the kernel would. */
static int closed(struct xengntdev_handle *handle)
{
    int64_t request[2] = { handle->release };
    struct held *held;

    while ((held = handle->held) != NULL) {
        request[1] = held->number;
        ask(request, 2, NULL, NULL);
        handle->held = held->next;
        free(held);
    }
    free(handle);
    return 0;
}

xengntshr_handle *xengntshr_open(struct xentoollog_logger *logger, unsigned flags)
{
    (void)logger, (void)flags;
    return opened(UNSHARE);
}

xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned flags)
{
    (void)logger, (void)flags;
    return opened(UNMAP);
}

int xengntshr_close(xengntshr_handle *handle)
{
    return handle ? closed(handle) : 0;
}

int xengnttab_close(xengnttab_handle *handle)
{
    return handle ? closed(handle) : 0;
}

static void *share(xengntshr_handle *handle, uint32_t domid, uint32_t count, uint32_t *refs,
                   int writable, int64_t offset, int64_t port)
{
    int64_t request[] = { SHARE, domid, count, writable, offset, port };
    int64_t answer[MOST];
    uint32_t i;

    /* A number, then the pages, then their references. */
    if (ask(request, 6, answer, NULL) < 0)
        return NULL;
    for (i = 0; i < count; i++)
        refs[i] = answer[1 + count + i];
    return mapped(handle, answer[0], answer + 1, count, PROT_READ | PROT_WRITE);
}

void *xengntshr_share_pages(xengntshr_handle *handle, uint32_t domid, int count, uint32_t *refs,
                            int writable)
{
    return share(handle, domid, count, refs, writable, -1, -1);
}

void *xengntshr_share_page_notify(xengntshr_handle *handle, uint32_t domid, uint32_t *ref,
                                  int writable, uint32_t offset, evtchn_port_t port)
{
    return share(handle, domid, 1, ref, writable, offset, port);
}

int xengntshr_unshare(xengntshr_handle *handle, void *address, uint32_t count)
{
    return give_back(handle, address, count);
}

static void *map(xengnttab_handle *handle, uint32_t domid, uint32_t count, const uint32_t *refs,
                 int prot, int64_t offset, int64_t port)
{
    int64_t request[MOST] = { MAP, domid, !!(prot & PROT_WRITE), offset, port };
    int64_t answer[MOST];
    uint32_t i;

    for (i = 0; i < count; i++)
        request[5 + i] = refs[i];
    if (ask(request, 5 + count, answer, NULL) < 0)
        return NULL;
    return mapped(handle, answer[0], answer + 1, count, prot);
}

void *xengnttab_map_domain_grant_refs(xengnttab_handle *handle, uint32_t count, uint32_t domid,
                                      uint32_t *refs, int prot)
{
    return map(handle, domid, count, refs, prot, -1, -1);
}

void *xengnttab_map_grant_ref_notify(xengnttab_handle *handle, uint32_t domid, uint32_t ref,
                                     int prot, uint32_t offset, evtchn_port_t port)
{
    return map(handle, domid, 1, &ref, prot, offset, port);
}

int xengnttab_unmap(xengnttab_handle *handle, void *address, uint32_t count)
{
    return give_back(handle, address, count);
}

/* One or two numbers to an event-channel handle; the number that comes back, or 0. */
static int channel(int operation, xenevtchn_handle *handle, int64_t first, int64_t second)
{
    int64_t request[] = { operation, handle->number, first, second };
    int64_t answer[MOST] = { 0 };

    return ask(request, 4, answer, NULL) < 0 ? -1 : (int)answer[0];
}

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int flags)
{
    int64_t request[] = { EVTCHN_OPEN }, answer[MOST];
    xenevtchn_handle *handle = malloc(sizeof(*handle));

    (void)logger, (void)flags;
    if (ask(request, 1, answer, &handle->fd) < 0)
        abort();
    handle->number = answer[0];
    return handle;
}

int xenevtchn_close(xenevtchn_handle *handle)
{
    channel(EVTCHN_CLOSE, handle, 0, 0);
    close(handle->fd);
    free(handle);
    return 0;
}

int xenevtchn_fd(xenevtchn_handle *handle)
{
    return handle->fd;
}

int xenevtchn_notify(xenevtchn_handle *handle, evtchn_port_t port)
{
    return channel(NOTIFY, handle, port, 0);
}

xenevtchn_port_or_error_t xenevtchn_bind_unbound_port(xenevtchn_handle *handle, uint32_t domid)
{
    return channel(BIND_UNBOUND, handle, domid, 0);
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *handle, uint32_t domid,
                                                     evtchn_port_t remote_port)
{
    return channel(BIND_INTERDOMAIN, handle, domid, remote_port);
}

int xenevtchn_unbind(xenevtchn_handle *handle, evtchn_port_t port)
{
    return channel(UNBIND, handle, port, 0);
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *handle)
{
    struct pollfd waited = { .fd = handle->fd, .events = POLLIN };
    int port;

    do
        poll(&waited, 1, -1);
    while ((port = channel(PENDING, handle, 0, 0)) == 0);
    return port;
}

int xenevtchn_unmask(xenevtchn_handle *handle, evtchn_port_t port)
{
    return channel(UNMASK, handle, port, 0);
}
