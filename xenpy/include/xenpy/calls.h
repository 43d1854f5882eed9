/* SPDX-License-Identifier: MIT */
/*
 * How a native engine reaches Xen: a table of functions, so that the same engine runs over the
 * Xen libraries, over a mock in C (sanitizers, fuzzing) and over xenpy's fake Xen (tests).
 *
 * The engine does not own what is behind `grants` and `events`; one thread uses a table.
 * Functions fail as the libraries do: NULL or -1, with errno.
 */
#ifndef XENPY_CALLS_H
#define XENPY_CALLS_H

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xenevtchn.h>
#include <xengnttab.h>

struct xenpy_calls {
    void *grants; /* the first argument of map, unmap and copy */
    void *events; /* the first argument of notify, pending and unmask */
    int events_fd; /* readable when a port is pending */

    void *(*map)(void *grants, uint32_t count, uint32_t domid, uint32_t *refs, int prot);
    int (*unmap)(void *grants, void *address, uint32_t count);
    int (*copy)(void *grants, uint32_t count, xengnttab_grant_copy_segment_t *segments);

    int (*notify)(void *events, uint32_t port);
    /* Takes up to `limit` pending ports, which are masked then.  Waits for one, unless events_fd
     * is non-blocking. */
    int (*pending)(void *events, uint32_t *ports, uint32_t limit);
    int (*unmask)(void *events, const uint32_t *ports, uint32_t count);
};

/*
 * A child of fork gets no copy of shared pages: it would keep them granted or mapped after the
 * parent has let go.  (gntdev does this by itself in a PV domain only.)
 */
static inline int xenpy_dont_fork(void *address, size_t length)
{
    return madvise(address, length, MADV_DONTFORK);
}

/* read(2) on /dev/xen/evtchn gives as many pending ports as fit (drivers/xen/evtchn.c). */
static inline int xenpy_evtchn_read(int fd, uint32_t *ports, uint32_t limit)
{
    ssize_t got = read(fd, ports, limit * sizeof(*ports));

    return got < 0 ? -1 : (int)(got / (ssize_t)sizeof(*ports));
}

/* write(2) unmasks them all.  The kernel takes at most a page of ports at a time. */
static inline int xenpy_evtchn_unmask(int fd, const uint32_t *ports, uint32_t count)
{
    return write(fd, ports, count * sizeof(*ports)) < 0 ? -1 : 0;
}

/* One piece of a grant copy: `length` bytes, within the foreign page. */
static inline void xenpy_copy_from_guest(xengnttab_grant_copy_segment_t *segment, uint32_t domid,
                                         uint32_t ref, uint32_t offset, void *local,
                                         uint32_t length)
{
    memset(segment, 0, sizeof(*segment));
    segment->source.foreign.ref = ref;
    segment->source.foreign.offset = (uint16_t)offset;
    segment->source.foreign.domid = (uint16_t)domid;
    segment->dest.virt = local;
    segment->len = (uint16_t)length;
    segment->flags = GNTCOPY_source_gref;
}

static inline void xenpy_copy_to_guest(xengnttab_grant_copy_segment_t *segment, uint32_t domid,
                                       uint32_t ref, uint32_t offset, void *local,
                                       uint32_t length)
{
    memset(segment, 0, sizeof(*segment));
    segment->source.virt = local;
    segment->dest.foreign.ref = ref;
    segment->dest.foreign.offset = (uint16_t)offset;
    segment->dest.foreign.domid = (uint16_t)domid;
    segment->len = (uint16_t)length;
    segment->flags = GNTCOPY_dest_gref;
}

static inline void *xenpy_calls_map(void *grants, uint32_t count, uint32_t domid, uint32_t *refs,
                                    int prot)
{
    void *address = xengnttab_map_domain_grant_refs(grants, count, domid, refs, prot);

    if (address)
        xenpy_dont_fork(address, (size_t)count << 12);
    return address;
}

static inline int xenpy_calls_unmap(void *grants, void *address, uint32_t count)
{
    return xengnttab_unmap(grants, address, count);
}

static inline int xenpy_calls_copy(void *grants, uint32_t count,
                                   xengnttab_grant_copy_segment_t *segments)
{
    return xengnttab_grant_copy(grants, count, segments);
}

static inline int xenpy_calls_notify(void *events, uint32_t port)
{
    return xenevtchn_notify(events, port);
}

static inline int xenpy_calls_pending(void *events, uint32_t *ports, uint32_t limit)
{
    return xenpy_evtchn_read(xenevtchn_fd(events), ports, limit);
}

static inline int xenpy_calls_unmask(void *events, const uint32_t *ports, uint32_t count)
{
    return xenpy_evtchn_unmask(xenevtchn_fd(events), ports, count);
}

static inline void xenpy_calls_init(struct xenpy_calls *calls, xengnttab_handle *grants,
                                    xenevtchn_handle *events)
{
    calls->grants = grants;
    calls->events = events;
    calls->events_fd = xenevtchn_fd(events);
    calls->map = xenpy_calls_map;
    calls->unmap = xenpy_calls_unmap;
    calls->copy = xenpy_calls_copy;
    calls->notify = xenpy_calls_notify;
    calls->pending = xenpy_calls_pending;
    calls->unmask = xenpy_calls_unmask;
}

#endif /* XENPY_CALLS_H */
