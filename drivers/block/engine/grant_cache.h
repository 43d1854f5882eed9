/* SPDX-License-Identifier: MIT */
/*
 * Persistent grants: the frontend's data pages that stay mapped, bounded, least recently used out.
 *
 * Pages that are mapped by one call of gntdev are unmapped by one: an extent.  Within a batch
 * nothing that the batch has found is unmapped.
 */
#ifndef XENPY_BLOCK_GRANT_CACHE_H
#define XENPY_BLOCK_GRANT_CACHE_H

#include <stdint.h>

#include <xenpy/calls.h>

#define GRANT_CACHE_EXTENT 32u /* pages of an extent at most */
#define GRANT_CACHE_NONE UINT32_MAX

struct grant_page {
    uint8_t *address; /* NULL: not mapped (yet), or the map failed */
    uint32_t ref;
    uint32_t extent;
    uint32_t next; /* in the hash chain, or of the free ones */
};

struct grant_extent {
    uint8_t *address; /* NULL: a free one */
    uint64_t used;    /* the number of the batch that used it last */
    uint32_t count;
    uint32_t pages[GRANT_CACHE_EXTENT];
};

struct grant_cache {
    const struct xenpy_calls *calls;
    uint32_t domid;
    uint32_t max_pages;
    uint32_t mapped;
    uint64_t batch;
    uint32_t free_page;   /* a chain */
    uint32_t failed_page; /* a chain: those that the current batch could not map */
    uint32_t buckets;     /* a power of two */
    uint32_t wanted;      /* how many of `pending` are to be mapped by the next call */
    uint32_t pending[GRANT_CACHE_EXTENT];
    uint32_t *heads;
    struct grant_page *pages;
    struct grant_extent *extents; /* max_pages of them: each has a page or more */
    uint64_t maps, unmaps;        /* pages, counted */
};

/* Allocates; returns 0 or -ENOMEM.  max_pages 0 is a cache that holds nothing. */
int grant_cache_open(struct grant_cache *cache, const struct xenpy_calls *calls, uint32_t domid,
                     uint32_t max_pages);

/* A batch begins: what the one before found may be unmapped from now on. */
void grant_cache_begin(struct grant_cache *cache);

/*
 * The page behind `ref`, for the whole of this batch; GRANT_CACHE_NONE if there is no room.
 * It may be mapped as late as grant_cache_settle; grant_cache_address tells afterwards.
 */
uint32_t grant_cache_want(struct grant_cache *cache, uint32_t ref);

/* Map what was wanted and is not mapped.  What cannot be mapped has no address: gntdev maps all
 * or none of a call (XSA-361, 365 and 367 are about the pieces of a failed batch). */
void grant_cache_settle(struct grant_cache *cache);

static inline uint8_t *grant_cache_address(const struct grant_cache *cache, uint32_t page)
{
    return page == GRANT_CACHE_NONE ? NULL : cache->pages[page].address;
}

/* Unmap everything and free.  Returns 0, or -errno if a page could not be unmapped. */
int grant_cache_close(struct grant_cache *cache);

#endif /* XENPY_BLOCK_GRANT_CACHE_H */
