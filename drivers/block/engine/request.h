/* SPDX-License-Identifier: MIT */
/*
 * blkif on the wire (xen/include/public/io/blkif.h): private copies in, checked requests out.
 *
 * The two layouts differ in where 64-bit numbers are aligned: on 4 bytes for a 32-bit x86, on 8
 * for all others.  Everything is read with memcpy out of a private copy, so that neither
 * alignment nor the peer matters.
 *
 * Inline, and told the layout by the caller: where that is a constant, nothing of the choice is
 * left, and a request costs what the fields of one layout cost.
 */
#ifndef XENPY_BLOCK_REQUEST_H
#define XENPY_BLOCK_REQUEST_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include <xenpy/ring_core.h>

#include "engine.h"

#define BLOCK_INLINE static inline __attribute__((always_inline))

#define BLOCK_OP_READ 0
#define BLOCK_OP_WRITE 1
#define BLOCK_OP_BARRIER 2
#define BLOCK_OP_FLUSH 3
#define BLOCK_OP_DISCARD 5
#define BLOCK_OP_INDIRECT 6

#define BLOCK_OKAY 0
#define BLOCK_ERROR (-1)
#define BLOCK_EOPNOTSUPP (-2)

#define BLOCK_DIRECT_SEGMENTS 11u
#define BLOCK_SEGMENT_BYTES 8u
#define BLOCK_INDIRECT_SEGMENTS 256u /* what is offered at most, as blkback's: half a page */
#define BLOCK_PAGE 4096u
#define BLOCK_SECTOR_SHIFT 9

struct block_segment {
    uint32_t gref;
    uint8_t first, last; /* sectors of the page, both included */
    uint32_t page;       /* in the grant cache: the engine's */
};

/* A request, as far as it has been checked. */
struct block_request {
    uint64_t id;
    uint64_t sector;  /* where it starts */
    uint64_t sectors; /* how many */
    /* BLOCK_OP_*; of an indirect request its own, which the response names as well: so does
     * blkback, and Linux's frontend looks for it. */
    uint8_t operation;
    bool indirect;
    int16_t status;
    uint32_t nr_segments;
    uint32_t indirect_gref; /* the page with an indirect request's segments: no more are offered */
    struct block_segment *segments;
};

/* What a request is checked against. */
struct block_limits {
    uint32_t abi;
    uint32_t flags;
    uint32_t max_indirect;
    uint64_t sectors;
    uint64_t fraction; /* of a request's first sector or count: a bit of it is part of a sector */
    /* By operation, READ to FLUSH: bit N says that N segments in the slot are good.  None are:
     * it was not offered. */
    uint16_t direct[BLOCK_OP_FLUSH + 1];
};

#define BLOCK_HEAD_BYTES 32u /* of a slot: its first segment included */
/* Bits of a head: of an operation beyond FLUSH, or a count that limits.direct has no bit for. */
#define BLOCK_NOT_DIRECT 0xf0fcu
#define BLOCK_LAST_SECTOR_OF_PAGE 7u
#define BLOCK_DISCARD_SECURE 1u

struct block_layout {
    uint8_t id, sector;    /* of every kind of request */
    uint8_t segments;      /* blkif_request.seg */
    uint8_t discard_count; /* blkif_request_discard.nr_sectors */
    uint8_t indirect_gref; /* blkif_request_indirect.indirect_grefs[0] */
    uint8_t request;       /* its size */
};

static const struct block_layout block_layouts[] = {
    [BLOCK_ABI_64] = { .id = 8, .sector = 16, .segments = 24, .discard_count = 24,
                       .indirect_gref = 28, .request = 112 },
    [BLOCK_ABI_32] = { .id = 4, .sector = 12, .segments = 20, .discard_count = 20,
                       .indirect_gref = 24, .request = 108 },
};

BLOCK_INLINE uint64_t block_get64(const uint8_t *from)
{
    uint64_t value;

    memcpy(&value, from, sizeof(value));
    return value;
}

BLOCK_INLINE uint32_t block_get32(const uint8_t *from)
{
    uint32_t value;

    memcpy(&value, from, sizeof(value));
    return value;
}

/* The last check, once all segments are known: their extent against the disk. */
BLOCK_INLINE void block_check_extent(const struct block_limits *limits,
                                     struct block_request *request)
{
    if (request->sectors == 0)
        return;
    /* Written so that nothing can wrap. */
    if (request->sectors > limits->sectors ||
        request->sector > limits->sectors - request->sectors ||
        ((request->sector | request->sectors) & limits->fraction) ||
        (request->operation != BLOCK_OP_READ && (limits->flags & BLOCK_READONLY)))
        request->status = BLOCK_ERROR;
}

/* Check one segment, out of a private copy.  Returns how many sectors it has, 0 if it is refused. */
BLOCK_INLINE uint32_t block_parse_segment(struct block_segment *segment, const uint8_t *from)
{
    uint32_t places = block_get32(from + 4), first = places & 0xff, last = places >> 8 & 0xff;

    segment->gref = block_get32(from);
    segment->first = (uint8_t)first;
    segment->last = (uint8_t)last;
    return first > last || last > BLOCK_LAST_SECTOR_OF_PAGE ? 0 : last - first + 1;
}

/* Check all nr_segments, out of a private copy of a slot's or of an indirect page, and where they
 * lie on the disk. */
BLOCK_INLINE void block_parse_segments(const struct block_limits *limits,
                                       struct block_request *request, const uint8_t *from)
{
    struct block_segment *segment = request->segments;
    const uint8_t *end = from + request->nr_segments * BLOCK_SEGMENT_BYTES;
    uint32_t sectors = 0;

    for (; from != end; from += BLOCK_SEGMENT_BYTES, segment++) {
        uint32_t some = block_parse_segment(segment, from);

        if (!some) {
            request->sectors = 0;
            request->status = BLOCK_ERROR;
            return;
        }
        sectors += some;
    }
    request->sectors = sectors;
    block_check_extent(limits, request);
}

static inline void block_parse_discard(const struct block_limits *limits,
                                       const struct block_layout *layout, const uint8_t *slot,
                                       struct block_request *request)
{
    /* The flag has nr_segments' place. */
    if (!(limits->flags & BLOCK_DISCARD) ||
        ((slot[1] & BLOCK_DISCARD_SECURE) && !(limits->flags & BLOCK_SECURE))) {
        request->status = BLOCK_EOPNOTSUPP;
        return;
    }
    request->sectors = block_get64(slot + layout->discard_count);
    if (request->sectors == 0)
        request->status = BLOCK_ERROR;
    else
        block_check_extent(limits, request);
}

static inline void block_parse_indirect(const struct block_limits *limits,
                                        const struct block_layout *layout, const uint8_t *slot,
                                        struct block_request *request)
{
    uint32_t count = slot[2] | (uint32_t)slot[3] << 8;

    request->operation = slot[1];
    if (limits->max_indirect == 0) {
        request->status = BLOCK_EOPNOTSUPP;
        return;
    }
    if ((request->operation != BLOCK_OP_READ && request->operation != BLOCK_OP_WRITE) ||
        count == 0 || count > limits->max_indirect) {
        request->status = BLOCK_ERROR;
        return;
    }
    request->indirect = true;
    request->nr_segments = count;
    request->indirect_gref = block_get32(slot + layout->indirect_gref);
}

/*
 * Copy a slot out of the ring and check the copy.  Every byte is copied once, and none that says
 * nothing: the head with the first segment, which is all of a discard or an indirect request,
 * then the segments that the copied head says there are (XSA-155).
 *
 * Direct segments go to request->segments, which has room for BLOCK_DIRECT_SEGMENTS; those of an
 * indirect request are still to come, by block_parse_segments.  What is refused has a status
 * other than BLOCK_OKAY.
 */
BLOCK_INLINE void block_take(uint32_t abi, const struct block_limits *limits,
                             const uint8_t *shared, uint8_t *message,
                             struct block_request *request)
{
    const struct block_layout *layout = &block_layouts[abi];
    uint32_t head, operation, count, length;

    xenpy_copy_once(message, shared, BLOCK_HEAD_BYTES);
    head = block_get32(message);
    operation = head & 0xff;
    count = head >> 8 & 0xff;
    request->id = block_get64(message + layout->id);
    request->sector = block_get64(message + layout->sector);
    request->operation = (uint8_t)operation;
    request->indirect = false;
    request->status = BLOCK_OKAY;
    if (!(head & BLOCK_NOT_DIRECT) && (limits->direct[operation] >> count & 1)) {
        request->nr_segments = count;
        if (count == 1) {
            /* It is in the head, and most have no more. */
            request->sectors = block_parse_segment(request->segments, message + layout->segments);
            if (request->sectors)
                block_check_extent(limits, request);
            else
                request->status = BLOCK_ERROR;
            return;
        }
        length = layout->segments + count * BLOCK_SEGMENT_BYTES;
        if (length > BLOCK_HEAD_BYTES)
            xenpy_copy_once(message + BLOCK_HEAD_BYTES, shared + BLOCK_HEAD_BYTES,
                            length - BLOCK_HEAD_BYTES);
        block_parse_segments(limits, request, message + layout->segments);
        return;
    }
    request->sectors = 0;
    request->nr_segments = 0;
    if (operation == BLOCK_OP_DISCARD)
        block_parse_discard(limits, layout, message, request);
    else if (operation == BLOCK_OP_INDIRECT)
        block_parse_indirect(limits, layout, message, request);
    else if (operation > BLOCK_OP_FLUSH || !limits->direct[operation])
        request->status = BLOCK_EOPNOTSUPP;
    else
        request->status = BLOCK_ERROR;
}

#define BLOCK_RESPONSE_BYTES(abi) ((abi) == BLOCK_ABI_32 ? 12u : 16u)

/*
 * Write a whole response; what blkif.h leaves undefined in it is zero (XSA-216).  Behind it the
 * slot keeps what the frontend itself wrote there.
 */
BLOCK_INLINE void block_response(uint32_t abi, const struct block_request *request, uint8_t *slot)
{
    /* id; operation, a byte of padding, status, and on 64 bits four bytes more of padding. */
    uint64_t rest = request->operation | (uint64_t)(uint16_t)request->status << 16;

    memcpy(slot, &request->id, 8);
    memcpy(slot + 8, &rest, BLOCK_RESPONSE_BYTES(abi) - 8);
}

#endif /* XENPY_BLOCK_REQUEST_H */
