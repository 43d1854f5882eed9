/* SPDX-License-Identifier: MIT */
/*
 * The oracle of test_ring_differential: the macros of the installed xen/io/ring.h, driven
 * through plain functions.  Two layouts: blkif's (112 and 16 bytes) and a tiny one where the
 * response is larger than the request.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Without it, ring.h takes its barriers by their old names. */
#define __XEN_INTERFACE_VERSION__ __XEN_LATEST_INTERFACE_VERSION__
/* ring.h wants these from the environment. */
#define xen_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define xen_rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define xen_wmb() __atomic_thread_fence(__ATOMIC_RELEASE)
#include <xen/xen.h>
#include <xen/io/ring.h>

struct large_request { uint8_t bytes[112]; };
struct large_response { uint8_t bytes[16]; };
struct small_request { uint8_t bytes[4]; };
struct small_response { uint8_t bytes[12]; };

DEFINE_RING_TYPES(large, struct large_request, struct large_response);
DEFINE_RING_TYPES(small, struct small_request, struct small_response);

#define ORACLE(name)                                                                       \
    int name##_entries(int pages)                                                          \
    {                                                                                      \
        return __RING_SIZE((struct name##_sring *)0, (size_t)pages * 4096);                \
    }                                                                                      \
    void *name##_front(void *page, int pages, uint32_t start)                              \
    {                                                                                      \
        name##_front_ring_t *ring = calloc(1, sizeof(*ring));                              \
        name##_sring_t *sring = page;                                                      \
        SHARED_RING_INIT(sring);                                                           \
        sring->req_prod = sring->rsp_prod = start;                                         \
        sring->req_event = sring->rsp_event = start + 1;                                   \
        FRONT_RING_ATTACH(ring, sring, start, (size_t)pages * 4096);                       \
        return ring;                                                                       \
    }                                                                                      \
    void *name##_back(void *page, int pages)                                               \
    {                                                                                      \
        name##_back_ring_t *ring = calloc(1, sizeof(*ring));                               \
        name##_sring_t *sring = page;                                                      \
        BACK_RING_ATTACH(ring, sring, sring->rsp_prod, (size_t)pages * 4096);              \
        return ring;                                                                       \
    }                                                                                      \
    int name##_put(name##_front_ring_t *ring, const uint8_t *messages, int count)          \
    {                                                                                      \
        int notify;                                                                        \
        for (int i = 0; i < count; i++) {                                                  \
            union name##_sring_entry *slot = (void *)RING_GET_REQUEST(ring, ring->req_prod_pvt);\
            memset(slot, 0, sizeof(*slot));                                                \
            memcpy(slot, messages + i * sizeof(slot->req), sizeof(slot->req));             \
            ring->req_prod_pvt++;                                                          \
        }                                                                                  \
        RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(ring, notify);                                 \
        return notify;                                                                     \
    }                                                                                      \
    int name##_back_take(name##_back_ring_t *ring, uint8_t *out, int limit)                \
    {                                                                                      \
        int taken = 0;                                                                     \
        for (; taken < limit && RING_HAS_UNCONSUMED_REQUESTS(ring); taken++) {             \
            struct name##_request request;                                                 \
            RING_COPY_REQUEST(ring, ring->req_cons, &request);                             \
            memcpy(out + taken * sizeof(request), &request, sizeof(request));              \
            ring->req_cons++;                                                              \
        }                                                                                  \
        return taken;                                                                      \
    }                                                                                      \
    int name##_push(name##_back_ring_t *ring, const uint8_t *messages, int count)          \
    {                                                                                      \
        int notify;                                                                        \
        for (int i = 0; i < count; i++) {                                                  \
            union name##_sring_entry *slot = (void *)RING_GET_RESPONSE(ring, ring->rsp_prod_pvt);\
            memset(slot, 0, sizeof(*slot));                                                \
            memcpy(slot, messages + i * sizeof(slot->rsp), sizeof(slot->rsp));             \
            ring->rsp_prod_pvt++;                                                          \
        }                                                                                  \
        RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(ring, notify);                                \
        return notify;                                                                     \
    }                                                                                      \
    int name##_back_final(name##_back_ring_t *ring)                                        \
    {                                                                                      \
        int more;                                                                          \
        RING_FINAL_CHECK_FOR_REQUESTS(ring, more);                                         \
        return !!more;                                                                     \
    }                                                                                      \
    int name##_front_take(name##_front_ring_t *ring, uint8_t *out, int limit)              \
    {                                                                                      \
        int taken = 0;                                                                     \
        for (; taken < limit && RING_HAS_UNCONSUMED_RESPONSES(ring); taken++) {            \
            memcpy(out + taken * sizeof(struct name##_response),                           \
                   RING_GET_RESPONSE(ring, ring->rsp_cons), sizeof(struct name##_response));\
            ring->rsp_cons++;                                                              \
        }                                                                                  \
        return taken;                                                                      \
    }                                                                                      \
    int name##_front_final(name##_front_ring_t *ring)                                      \
    {                                                                                      \
        int more;                                                                          \
        RING_FINAL_CHECK_FOR_RESPONSES(ring, more);                                        \
        return !!more;                                                                     \
    }

ORACLE(large)
ORACLE(small)
