/* SPDX-License-Identifier: MIT */
/*
 * The native block engine: one blkif ring, from event to response, without Python.
 *
 * It takes addresses, descriptors and two flat blocks of memory, and knows neither Python nor
 * XenStore, so that it runs in a thread of the daemon or in a process of its own.  Whoever starts
 * it has mapped the ring and bound the port; the engine maps data pages and unmaps them again.
 *
 * `block_config` is read once, at the start.  `block_state` is shared with whoever watches: every
 * word of it is written by one side only and read and written atomically.
 */
#ifndef XENPY_BLOCK_ENGINE_H
#define XENPY_BLOCK_ENGINE_H

#include <pthread.h>
#include <stdint.h>

#define BLOCK_VERSION 1u

#define BLOCK_ABI_64 0u /* x86_64-abi and arm-abi */
#define BLOCK_ABI_32 1u /* x86_32-abi */

#define BLOCK_PERSISTENT 1u /* the frontend keeps its grants: keep them mapped */
#define BLOCK_READONLY 2u
#define BLOCK_DISCARD 4u /* DISCARD was offered */
#define BLOCK_BARRIER 8u /* WRITE_BARRIER was */
#define BLOCK_MAPPED 16u /* read a file through a mapping: for a process of its own */
#define BLOCK_SECURE 32u /* DISCARD was offered with its secure flag */

#define BLOCK_STORE_FILE 0u   /* a regular file or a block device */
#define BLOCK_STORE_MEMORY 1u /* a memfd, mapped; it never shrinks */
#define BLOCK_STORE_NULL 2u   /* reads as anything, forgets what is written */
#define BLOCK_STORE_CALLBACK 3u /* functions of the caller's: a store in Python */

#define BLOCK_SLOT_BYTES 112u
#define BLOCK_MAX_SLOTS 512u /* of a ring of 16 pages */

struct block_config {
    uint32_t version;    /* BLOCK_VERSION */
    uint32_t size;       /* of this structure */
    uint32_t domid;      /* the frontend's */
    uint32_t port;       /* ours, bound */
    uint32_t abi;
    uint32_t ring_pages; /* 1 to 16 */
    uint32_t flags;
    uint32_t max_indirect; /* segments of an indirect request that were offered; 0: none */
    uint32_t max_mapped; /* data pages kept mapped at most */
    uint32_t batch;      /* requests served in one go at most, 1 to 32 */
    uint32_t start;      /* rsp_prod as it was found when the ring was mapped */
    uint32_t store_kind;
    int32_t store_fd;
    int32_t stop_fd;     /* an eventfd: readable means stop.  -1: calls->pending waits for an event,
                          * and whoever sets state->stop makes it return */
    uint32_t sector_size; /* what requests are whole multiples of: bytes, a power of two */
    uint32_t padding;
    uint64_t store_size; /* bytes */
};

/* Counters, by the names that the batch tier gives them. */
struct block_counters {
    uint64_t rd_req, wr_req, f_req, ds_req;
    uint64_t rd_sect, wr_sect, ds_sect;
    uint64_t requests, indirect, batches, wakeups, notifications;
    uint64_t refused, errors, flushes_failed;
    uint64_t grants_mapped, grants_unmapped, grants_copied;
};

#define BLOCK_XENTOP_VERSION 1u

/* What xentop reads of a disk that neither blkback nor blktap2 serves: struct vbd3_stats of Xen's
 * tools/libs/stat/xenstat_priv.h, since 4.19 (66c8e9b76c).  The ticks stay 0: xentop shows none,
 * and two looks at the clock for each batch would be their price. */
struct block_xentop {
    uint32_t version, padding;
    uint64_t oo_reqs;
    uint64_t read_reqs_submitted, read_reqs_completed, read_sectors, read_total_ticks;
    uint64_t write_reqs_submitted, write_reqs_completed, write_sectors, write_total_ticks;
    uint64_t io_errors, flags;
};

/*
 * What all queues of a disk share, in memory that their processes share.  One flush at a time:
 * the kernel tells one caller of a lost write, and the next must not have begun before that is
 * known.
 */
struct block_disk {
    struct block_xentop xentop; /* first: the memory may be the file that xentop reads */
    pthread_mutex_t flushing;
    uint32_t lost;    /* the errno of a flush that failed, for good */
    uint32_t punched; /* 1: a discard has left holes in the file */
};

/* Once, before anybody uses it. */
void block_disk_init(struct block_disk *disk);

/* A request as the frontend sent it, and what became of it. */
struct block_slot {
    uint8_t message[BLOCK_SLOT_BYTES]; /* as far as it means anything */
    int32_t status; /* valid once `answered` has passed this request's index */
    uint32_t index; /* of the request in the ring, free-running */
    uint64_t padding; /* to a power of two */
};

struct block_state {
    uint32_t version; /* BLOCK_VERSION */
    uint32_t size;    /* of this structure */
    /*
     * The journal: requests `rsp_prod` up to `req_cons` are in flight, each in slots[its index
     * modulo the ring's entries].  A request is there before it is carried out; its status is
     * there, and `rsp_prod` moved, before the response is pushed.
     */
    uint32_t req_cons;
    uint32_t rsp_prod;
    /* Written by the control plane: a disk may be resized while it runs. */
    uint64_t sectors;
    /* Written by the control plane, before it wakes the engine: leave, also a ring that never
     * empties. */
    uint32_t stop;
    uint32_t padding;
    struct block_counters counters;
    struct block_slot slots[BLOCK_MAX_SLOTS];
};

/* Requests served in one go: a ring of one page.  Bounds the time between looks at `stop`. */
#define BLOCK_BATCH 32u
/* Guest data that is copied passes through this much memory, in pieces if a batch has more. */
#define BLOCK_POOL_PAGES 1024u

/* A read or write as a callback sees it. */
struct block_call {
    uint64_t offset; /* on the disk: bytes */
    uint32_t place;  /* of the data in the pool, in one piece: bytes */
    uint32_t length; /* bytes */
    uint32_t write;  /* 0: a read */
    int32_t result;  /* 0 or -errno; -EIO if the callback leaves it */
};

/* A store whose bytes the caller reads and writes.  It never sees a page of the frontend's. */
struct block_callbacks {
    void *context;            /* the first argument of each */
    uint8_t *pool;            /* BLOCK_POOL_PAGES, page-aligned; the engine's during a run */
    struct block_call *calls; /* BLOCK_BATCH of them */
    /* Carry out calls[0] to calls[count - 1], in any order. */
    void (*transfer)(void *context, uint32_t count);
    /* Both return 0 or -errno. */
    int (*flush)(void *context);
    int (*discard)(void *context, uint64_t offset, uint64_t length);
};

/* What a process of its own is given beside the state: it maps the ring and binds the port. */
struct block_worker {
    struct block_config config; /* without port and start */
    uint32_t remote_port;
    uint32_t refs[16]; /* of the ring's pages */
};

struct xenpy_calls;
struct xenpy_trace;

/* For config.start, before the frontend is told that it is connected: from then on the word is
 * the frontend's to scribble on. */
uint32_t block_ring_start(const void *ring);

/*
 * Serve until told to stop.  Returns 0 then, or a negative errno: -EPROTO, the frontend's
 * producer index is absurd; -EINVAL, the configuration is; others from Xen or the system.
 * Either way no data page is mapped any more and no I/O is in flight.
 *
 * `trace` is where requests are recorded while somebody wants that, and may be NULL; the detail of
 * a record is how many sectors were asked for.  `callbacks` are for BLOCK_STORE_CALLBACK, else NULL.
 */
int block_engine_run(const struct block_config *config, struct block_state *state,
                     const struct xenpy_calls *calls, void *ring, struct block_disk *disk,
                     struct xenpy_trace *trace, const struct block_callbacks *callbacks);

#endif /* XENPY_BLOCK_ENGINE_H */
