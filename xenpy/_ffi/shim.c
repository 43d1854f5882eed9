/* SPDX-License-Identifier: MIT */
/*
 * What Python cannot say itself: many event-channel ports in one system call, and grant-copy
 * segments filled in without a Python object for each.
 * Compiled into xenpy._ffi._stable, between the cdefs' wrappers and the stable libraries.
 */
#include <errno.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xenevtchn.h>
#include <xengnttab.h>
#include <xen/sys/evtchn.h>

#include "quiet.h"
#include "ring_core.h"

/*
 * A child of fork gets no copy of shared pages: it would keep them granted or mapped after
 * the parent has let go.  (gntdev does this by itself in a PV domain only.)
 */
static int xenpy_dont_fork(void *address, size_t length)
{
    return madvise(address, length, MADV_DONTFORK);
}

/* read(2) on /dev/xen/evtchn gives as many pending ports as fit (drivers/xen/evtchn.c). */
static int xenpy_evtchn_read(int fd, uint32_t *ports, uint32_t limit)
{
    ssize_t got = read(fd, ports, limit * sizeof(*ports));

    return got < 0 ? -1 : (int)(got / (ssize_t)sizeof(*ports));
}

/* write(2) unmasks them all.  The kernel takes at most a page of ports at a time. */
static int xenpy_evtchn_unmask(int fd, const uint32_t *ports, uint32_t count)
{
    return write(fd, ports, count * sizeof(*ports)) < 0 ? -1 : 0;
}

static int xenpy_evtchn_reset(int fd)
{
    return ioctl(fd, IOCTL_EVTCHN_RESET);
}

static void xenpy_copy_from_guest(xengnttab_grant_copy_segment_t *segment, uint32_t domid,
                                  uint32_t ref, uint32_t offset, void *local, uint32_t length)
{
    memset(segment, 0, sizeof(*segment));
    segment->source.foreign.ref = ref;
    segment->source.foreign.offset = (uint16_t)offset;
    segment->source.foreign.domid = (uint16_t)domid;
    segment->dest.virt = local;
    segment->len = (uint16_t)length;
    segment->flags = GNTCOPY_source_gref;
}

static void xenpy_copy_to_guest(xengnttab_grant_copy_segment_t *segment, uint32_t domid,
                                uint32_t ref, uint32_t offset, void *local, uint32_t length)
{
    memset(segment, 0, sizeof(*segment));
    segment->source.virt = local;
    segment->dest.foreign.ref = ref;
    segment->dest.foreign.offset = (uint16_t)offset;
    segment->dest.foreign.domid = (uint16_t)domid;
    segment->len = (uint16_t)length;
    segment->flags = GNTCOPY_dest_gref;
}

/* Copies the segments with this status to `found` and their numbers to `where`. */
static uint32_t xenpy_copy_select(const xengnttab_grant_copy_segment_t *segments, uint32_t count,
                                  int status, xengnttab_grant_copy_segment_t *found,
                                  uint32_t *where)
{
    uint32_t i, selected = 0;

    for (i = 0; i < count; i++) {
        if (segments[i].status != status)
            continue;
        found[selected] = segments[i];
        where[selected++] = i;
    }
    return selected;
}

static void xenpy_copy_merge(xengnttab_grant_copy_segment_t *segments,
                             const xengnttab_grant_copy_segment_t *found, const uint32_t *where,
                             uint32_t count)
{
    uint32_t i;

    for (i = 0; i < count; i++)
        segments[where[i]].status = found[i].status;
}
