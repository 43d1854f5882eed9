/* SPDX-License-Identifier: MIT */
/*
 * Ordered access to rings in shared memory: xen/include/public/io/ring.h and the byte rings
 * of io/console.h, for a peer that is hostile and runs at the same time on another CPU.
 *
 * Static inline and without any dependency but the C library, so that the Python shim and
 * native engines compile the same code.  The rules:
 *
 *   - A shared index is read once per decision, with acquire; it is checked before it is used.
 *   - A slot is copied out once, by volatile reads, and never looked at again (XSA-155); the
 *     bytes of a stream are copied out and looked at in the copy only.
 *   - A slot is written whole: the message, then zeros (XSA-216).
 *   - A producer index is stored with release, after the slots.
 *   - Between the store of our index and the load of the peer's stands a full fence: neither
 *     x86 nor any other machine keeps a store before a later load by itself.
 *   - What the peer may overwrite (our own producer index included) is never read back.
 *
 * The shared words are plain uint32_t, so this uses the compiler's __atomic builtins, which
 * are C11's memory model without the _Atomic qualifier.
 */
#ifndef XENPY_RING_CORE_H
#define XENPY_RING_CORE_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* struct X_sring: req_prod, req_event, rsp_prod, rsp_event, 48 bytes of padding, the slots. */
#define XENPY_RING_HEADER 64u
#define XENPY_REQ_PROD 0u
#define XENPY_REQ_EVENT 4u
#define XENPY_RSP_PROD 8u
#define XENPY_RSP_EVENT 12u

static inline uint32_t xenpy_load_acquire(const void *where)
{
    return __atomic_load_n((const uint32_t *)where, __ATOMIC_ACQUIRE);
}

static inline void xenpy_store_release(void *where, uint32_t value)
{
    __atomic_store_n((uint32_t *)where, value, __ATOMIC_RELEASE);
}

/* xen_mb().  The litmus of tests/abi builds a variant without it, to see that it is needed. */
static inline void xenpy_fence(void)
{
#ifndef XENPY_RING_NO_FENCE
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#else
    __asm__ __volatile__("" ::: "memory");
#endif
}

/* A byte that the other side may write at any time: read once, and what follows stays behind. */
static inline uint8_t xenpy_load_acquire8(const void *where)
{
    return __atomic_load_n((const uint8_t *)where, __ATOMIC_ACQUIRE);
}

static inline void xenpy_store_release8(void *where, uint8_t value)
{
    __atomic_store_n((uint8_t *)where, value, __ATOMIC_RELEASE);
}

/* Bits that both sides change, such as vchan's notify bytes: atomic read-modify-write. */
static inline uint8_t xenpy_fetch_or8(void *where, uint8_t bits)
{
    return __atomic_fetch_or((uint8_t *)where, bits, __ATOMIC_SEQ_CST);
}

static inline uint8_t xenpy_fetch_and8(void *where, uint8_t bits)
{
    return __atomic_fetch_and((uint8_t *)where, bits, __ATOMIC_SEQ_CST);
}

/* Sixteen bytes at a time; the compiler may neither repeat nor leave out a volatile access. */
typedef uint64_t xenpy_vector __attribute__((vector_size(16), may_alias));

/* Copy out of shared memory, reading every byte exactly once: memcpy may read twice. */
static inline void xenpy_copy_once(void *private_copy, const void *shared, size_t length)
{
    const volatile uint8_t *from = shared;
    uint8_t *to = private_copy;

    if (((uintptr_t)shared & 15) == 0) {
        for (; length >= 16; length -= 16, from += 16, to += 16) {
            xenpy_vector some = *(const volatile xenpy_vector *)(const volatile void *)from;
            memcpy(to, &some, sizeof(some));
        }
    }
    if (((uintptr_t)from & 3) == 0) {
        for (; length >= 4; length -= 4, from += 4, to += 4) {
            uint32_t word = *(const volatile uint32_t *)(const volatile void *)from;
            memcpy(to, &word, sizeof(word));
        }
    }
    for (; length; length--)
        *to++ = *from++;
}

struct xenpy_ring {
    uint32_t entries;       /* a power of two */
    uint32_t request_size;
    uint32_t response_size;
    uint32_t slot_size;     /* of the union: the distance between slots */
    uint32_t produced;      /* back: rsp_prod_pvt; front: req_prod_pvt */
    uint32_t consumed;      /* back: req_cons; front: rsp_cons */
};

static inline uint8_t *xenpy_slot(const struct xenpy_ring *ring, void *shared, uint32_t index)
{
    size_t number = index & (ring->entries - 1);

    return (uint8_t *)shared + XENPY_RING_HEADER + number * ring->slot_size;
}

static inline void xenpy_write_slot(const struct xenpy_ring *ring, void *shared, uint32_t index,
                                    const uint8_t *message, uint32_t size)
{
    uint8_t *slot = xenpy_slot(ring, shared, index);

    memcpy(slot, message, size);
    memset(slot + size, 0, ring->slot_size - size);
}

/*
 * Publish `count` more slots under `prod` and tell whether the peer wants a notification:
 * RING_PUSH_*_AND_CHECK_NOTIFY.  The old index is our private one; ring.h reads it from the
 * shared page, where the peer may have changed it.
 */
static inline int xenpy_publish(struct xenpy_ring *ring, uint8_t *prod, const uint8_t *event,
                                uint32_t count)
{
    uint32_t produced = ring->produced + count;

    ring->produced = produced;
    xenpy_store_release(prod, produced);
    xenpy_fence();
    return (uint32_t)(produced - xenpy_load_acquire(event)) < count;
}

/*
 * How many requests may be taken: RING_HAS_UNCONSUMED_REQUESTS.  -EPROTO if req_prod is more
 * than a ring ahead of what we have answered, or has gone back behind what we have taken.
 */
static inline int64_t xenpy_back_available(const struct xenpy_ring *ring, void *shared)
{
    uint32_t prod = xenpy_load_acquire((uint8_t *)shared + XENPY_REQ_PROD);
    uint32_t in_flight = ring->consumed - ring->produced;

    if ((uint32_t)(prod - ring->produced) > ring->entries ||
        (uint32_t)(prod - ring->produced) < in_flight)
        return -EPROTO;
    return (uint32_t)(prod - ring->consumed);
}

/* Copy out up to `limit` requests, one after the other.  Returns how many, or -EPROTO. */
static inline int64_t xenpy_back_take(struct xenpy_ring *ring, void *shared, uint8_t *requests,
                                      uint32_t limit)
{
    int64_t available = xenpy_back_available(ring, shared);
    uint32_t count, i;

    if (available < 0)
        return available;
    count = available < limit ? (uint32_t)available : limit;
    for (i = 0; i < count; i++)
        xenpy_copy_once(requests + (size_t)i * ring->request_size,
                        xenpy_slot(ring, shared, ring->consumed + i), ring->request_size);
    ring->consumed += count;
    return count;
}

/* 1: the frontend wants a notification; 0: it does not; -EINVAL: more than were taken. */
static inline int64_t xenpy_back_push(struct xenpy_ring *ring, void *shared,
                                      const uint8_t *responses, uint32_t count)
{
    uint8_t *page = shared;
    uint32_t i;

    if (count > (uint32_t)(ring->consumed - ring->produced))
        return -EINVAL;
    if (count == 0)
        return 0;
    for (i = 0; i < count; i++)
        xenpy_write_slot(ring, shared, ring->produced + i,
                         responses + (size_t)i * ring->response_size, ring->response_size);
    return xenpy_publish(ring, page + XENPY_RSP_PROD, page + XENPY_RSP_EVENT, count);
}

/* RING_FINAL_CHECK_FOR_REQUESTS: > 0 there is work; 0 the next request brings an event. */
static inline int64_t xenpy_back_final_check(struct xenpy_ring *ring, void *shared)
{
    int64_t available = xenpy_back_available(ring, shared);

    if (available != 0)
        return available;
    xenpy_store_release((uint8_t *)shared + XENPY_REQ_EVENT, ring->consumed + 1);
    xenpy_fence();
    return xenpy_back_available(ring, shared);
}

/* How many responses are there.  -EPROTO if there are more than requests in flight. */
static inline int64_t xenpy_front_available(const struct xenpy_ring *ring, void *shared)
{
    uint32_t prod = xenpy_load_acquire((uint8_t *)shared + XENPY_RSP_PROD);
    uint32_t available = prod - ring->consumed;

    if (available > (uint32_t)(ring->produced - ring->consumed))
        return -EPROTO;
    return available;
}

static inline int64_t xenpy_front_take(struct xenpy_ring *ring, void *shared, uint8_t *responses,
                                       uint32_t limit)
{
    int64_t available = xenpy_front_available(ring, shared);
    uint32_t count, i;

    if (available < 0)
        return available;
    count = available < limit ? (uint32_t)available : limit;
    for (i = 0; i < count; i++)
        xenpy_copy_once(responses + (size_t)i * ring->response_size,
                        xenpy_slot(ring, shared, ring->consumed + i), ring->response_size);
    ring->consumed += count;
    return count;
}

/* 1: the backend wants a notification; 0: it does not; -EINVAL: more than are free. */
static inline int64_t xenpy_front_put(struct xenpy_ring *ring, void *shared,
                                      const uint8_t *requests, uint32_t count)
{
    uint8_t *page = shared;
    uint32_t i;

    if (count > ring->entries - (uint32_t)(ring->produced - ring->consumed))
        return -EINVAL;
    if (count == 0)
        return 0;
    for (i = 0; i < count; i++)
        xenpy_write_slot(ring, shared, ring->produced + i,
                         requests + (size_t)i * ring->request_size, ring->request_size);
    return xenpy_publish(ring, page + XENPY_REQ_PROD, page + XENPY_REQ_EVENT, count);
}

static inline int64_t xenpy_front_final_check(struct xenpy_ring *ring, void *shared)
{
    int64_t available = xenpy_front_available(ring, shared);

    if (available != 0)
        return available;
    xenpy_store_release((uint8_t *)shared + XENPY_RSP_EVENT, ring->consumed + 1);
    xenpy_fence();
    return xenpy_front_available(ring, shared);
}

/*
 * One direction of a byte ring.  `index` is ours (the consumer's or the producer's) and is kept
 * privately; the peer's is read from `theirs`.
 */
struct xenpy_stream {
    uint32_t size;    /* a power of two */
    uint32_t index;
};

/* How many bytes the consumer may take.  -EPROTO if the producer is out of bounds. */
static inline int64_t xenpy_stream_queued(const struct xenpy_stream *stream, const uint8_t *theirs)
{
    uint32_t queued = xenpy_load_acquire(theirs) - stream->index;

    return queued > stream->size ? -EPROTO : (int64_t)queued;
}

/* How many bytes of the producer's were not taken yet.  -EPROTO as above, of the consumer. */
static inline int64_t xenpy_stream_unread(const struct xenpy_stream *stream, const uint8_t *theirs)
{
    uint32_t unread = stream->index - xenpy_load_acquire(theirs);

    return unread > stream->size ? -EPROTO : (int64_t)unread;
}

/* The consumer has copied out `count` bytes of those that were queued. */
static inline void xenpy_stream_taken(struct xenpy_stream *stream, uint8_t *ours, uint32_t count)
{
    stream->index += count;
    /* Release: the bytes are read before the producer may overwrite them. */
    xenpy_store_release(ours, stream->index);
    xenpy_fence();
}

/* Take up to `limit` bytes.  Returns how many, or -EPROTO if the producer is out of bounds. */
static inline int64_t xenpy_stream_read(struct xenpy_stream *stream, const uint8_t *ring,
                                        uint8_t *ours, const uint8_t *theirs, uint8_t *out,
                                        size_t limit)
{
    uint32_t queued = xenpy_load_acquire(theirs) - stream->index;
    uint32_t start = stream->index & (stream->size - 1);
    uint32_t count, first;

    if (queued > stream->size)
        return -EPROTO;
    count = queued < limit ? queued : (uint32_t)limit;
    first = count < stream->size - start ? count : stream->size - start;
    /*
     * Bytes of a stream lie at any address, where xenpy_copy_once is slow, and mean nothing here:
     * a byte that memcpy reads twice is one of two that the producer chose.  Whoever looks into
     * them looks into the copy.
     */
    memcpy(out, ring + start, first);
    memcpy(out + first, ring, count - first);
    xenpy_stream_taken(stream, ours, count);
    return count;
}

/* Put up to `length` bytes.  Returns how many fitted, or -EPROTO. */
static inline int64_t xenpy_stream_write(struct xenpy_stream *stream, uint8_t *ring,
                                         uint8_t *ours, const uint8_t *theirs,
                                         const uint8_t *data, size_t length)
{
    uint32_t queued = stream->index - xenpy_load_acquire(theirs);
    uint32_t start = stream->index & (stream->size - 1);
    uint32_t count, first;

    if (queued > stream->size)
        return -EPROTO;
    count = stream->size - queued < length ? stream->size - queued : (uint32_t)length;
    first = count < stream->size - start ? count : stream->size - start;
    memcpy(ring + start, data, first);
    memcpy(ring, data + first, count - first);
    stream->index += count;
    xenpy_store_release(ours, stream->index);
    xenpy_fence();
    return count;
}

#endif /* XENPY_RING_CORE_H */
