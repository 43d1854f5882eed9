/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "grant_cache.h"

static uint32_t bucket_of(const struct grant_cache *cache, uint32_t ref)
{
    /* Fibonacci hashing: references are often consecutive, and a hostile frontend that makes
     * them collide walks its own chains, of max_pages at most. */
    return (ref * 2654435769u) >> 16 & (cache->buckets - 1);
}

int grant_cache_open(struct grant_cache *cache, const struct xenpy_calls *calls, uint32_t domid,
                     uint32_t max_pages)
{
    uint32_t i, pages = max_pages + GRANT_CACHE_EXTENT;

    *cache = (struct grant_cache){ .calls = calls, .domid = domid, .max_pages = max_pages,
                                   .free_page = GRANT_CACHE_NONE, .buckets = 64,
                                   .failed_page = GRANT_CACHE_NONE };
    while (cache->buckets < max_pages * 2)
        cache->buckets *= 2;
    cache->heads = malloc(cache->buckets * sizeof(*cache->heads));
    cache->pages = calloc(pages, sizeof(*cache->pages));
    cache->extents = calloc(max_pages + 1, sizeof(*cache->extents));
    if (!cache->heads || !cache->pages || !cache->extents) {
        grant_cache_close(cache);
        return -ENOMEM;
    }
    for (i = 0; i < cache->buckets; i++)
        cache->heads[i] = GRANT_CACHE_NONE;
    for (i = pages; i-- > 0;) {
        cache->pages[i].next = cache->free_page;
        cache->free_page = i;
    }
    return 0;
}

static void forget(struct grant_cache *cache, uint32_t number)
{
    uint32_t *link = &cache->heads[bucket_of(cache, cache->pages[number].ref)];

    while (*link != number)
        link = &cache->pages[*link].next;
    *link = cache->pages[number].next;
}

static int evict(struct grant_cache *cache, struct grant_extent *extent)
{
    uint32_t i;

    if (cache->calls->unmap(cache->calls->grants, extent->address, extent->count) < 0) {
        /* It counts as mapped still; another may go in its place. */
        extent->used = cache->batch;
        return -errno;
    }
    for (i = 0; i < extent->count; i++) {
        struct grant_page *page = &cache->pages[extent->pages[i]];

        forget(cache, extent->pages[i]);
        page->address = NULL;
        page->next = cache->free_page;
        cache->free_page = extent->pages[i];
    }
    cache->mapped -= extent->count;
    cache->unmaps += extent->count;
    extent->address = NULL;
    return 0;
}

/* A free extent, with room for `count` pages in the cache; NULL if this batch uses all of it. */
static struct grant_extent *make_room(struct grant_cache *cache, uint32_t count)
{
    struct grant_extent *free_one = NULL, *oldest;
    uint32_t i;

    do {
        oldest = NULL;
        for (i = 0; i < cache->max_pages; i++) {
            struct grant_extent *extent = &cache->extents[i];

            if (!extent->address)
                free_one = extent;
            else if (extent->used != cache->batch && (!oldest || extent->used < oldest->used))
                oldest = extent;
            if (free_one && cache->mapped + count <= cache->max_pages)
                return free_one;
        }
        if (oldest)
            evict(cache, oldest);
    } while (oldest);
    return NULL;
}

void grant_cache_begin(struct grant_cache *cache)
{
    cache->batch++;
    while (cache->failed_page != GRANT_CACHE_NONE) {
        uint32_t number = cache->failed_page;

        cache->failed_page = cache->pages[number].next;
        cache->pages[number].next = cache->free_page;
        cache->free_page = number;
    }
}

uint32_t grant_cache_want(struct grant_cache *cache, uint32_t ref)
{
    uint32_t *head = &cache->heads[bucket_of(cache, ref)], number;

    for (number = *head; number != GRANT_CACHE_NONE; number = cache->pages[number].next) {
        struct grant_page *page = &cache->pages[number];

        if (page->ref == ref) {
            if (page->address)
                cache->extents[page->extent].used = cache->batch;
            return number;
        }
    }
    if (cache->wanted == GRANT_CACHE_EXTENT)
        grant_cache_settle(cache);
    if (cache->free_page == GRANT_CACHE_NONE)
        return GRANT_CACHE_NONE;
    /* Settling may have changed the chain, never its head's place. */
    number = cache->free_page;
    cache->free_page = cache->pages[number].next;
    cache->pages[number].ref = ref;
    cache->pages[number].next = *head;
    *head = number;
    cache->pending[cache->wanted++] = number;
    return number;
}

void grant_cache_settle(struct grant_cache *cache)
{
    uint32_t refs[GRANT_CACHE_EXTENT], i, count = cache->wanted;
    struct grant_extent *extent;
    uint8_t *address = NULL;

    if (count == 0)
        return;
    cache->wanted = 0;
    for (i = 0; i < count; i++)
        refs[i] = cache->pages[cache->pending[i]].ref;
    extent = make_room(cache, count);
    if (extent)
        address = cache->calls->map(cache->calls->grants, count, cache->domid, refs,
                                    PROT_READ | PROT_WRITE);
    if (!address) {
        for (i = 0; i < count; i++) {
            uint32_t number = cache->pending[i];

            forget(cache, number);
            cache->pages[number].next = cache->failed_page;
            cache->failed_page = number;
        }
        return;
    }
    extent->address = address;
    extent->used = cache->batch;
    extent->count = count;
    for (i = 0; i < count; i++) {
        struct grant_page *page = &cache->pages[cache->pending[i]];

        extent->pages[i] = cache->pending[i];
        page->extent = (uint32_t)(extent - cache->extents);
        page->address = address + (size_t)i * 4096u;
    }
    cache->mapped += count;
    cache->maps += count;
}

int grant_cache_close(struct grant_cache *cache)
{
    int failed = 0, result;
    uint32_t i;

    for (i = 0; cache->extents && i < cache->max_pages; i++) {
        if (!cache->extents[i].address)
            continue;
        result = evict(cache, &cache->extents[i]);
        if (result < 0)
            failed = result;
    }
    free(cache->heads);
    free(cache->pages);
    free(cache->extents);
    cache->heads = NULL;
    cache->pages = NULL;
    cache->extents = NULL;
    return failed;
}
