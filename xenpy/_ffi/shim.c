/* SPDX-License-Identifier: MIT */
/*
 * What Python cannot say itself, beside our headers: many grant-copy segments sifted
 * without a Python object for each.
 * Compiled into xenpy._ffi._stable, between the cdefs' wrappers and the stable libraries.
 */
#include <errno.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include <xenevtchn.h>
#include <xengnttab.h>
#include <xen/sys/evtchn.h>

#include <xenpy/calls.h>
#include <xenpy/duplex.h>
#include <xenpy/peek.h>
#include <xenpy/quiet.h>
#include <xenpy/ring_core.h>
#include <xenpy/trace.h>

static int xenpy_evtchn_reset(int fd)
{
    return ioctl(fd, IOCTL_EVTCHN_RESET);
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
