/* SPDX-License-Identifier: MIT */
/*
 * What the ring itself costs: full batches of 32 out of it and back, by the engine's two halves
 * around the I/O, against a loop over ring.h's macros that does the least that a careful backend
 * may: copy each request out, check it, answer it.  The engine keeps its journal as well.  One
 * thread, no events; what the frontend's half takes is taken off.
 *
 * Prints nanoseconds for a request, ours and theirs, the median of all rounds.
 */
#include <time.h>

#include "mock_xen.h"

#define ROUNDS 61
#define BATCHES 4000

#undef xen_mb
#undef xen_rmb
#undef xen_wmb
#define xen_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define xen_rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define xen_wmb() __atomic_thread_fence(__ATOMIC_RELEASE)

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return (left > right) - (left < right);
}

static void fill(struct blkif_front_ring *front)
{
    uint32_t n;
    int notify;

    for (n = 0; n < 32; n++) {
        struct blkif_request *request = RING_GET_REQUEST(front, front->req_prod_pvt);

        front->req_prod_pvt++;
        request->operation = BLKIF_OP_READ;
        request->nr_segments = 1;
        request->id = n;
        request->sector_number = n * 8;
        request->seg[0].gref = 8 + n;
        request->seg[0].first_sect = 0;
        request->seg[0].last_sect = 7;
    }
    RING_PUSH_REQUESTS_AND_CHECK_NOTIFY(front, notify);
    (void)notify;
}

static void empty(struct blkif_front_ring *front)
{
    front->rsp_cons = front->sring->rsp_prod;
}

/* The least. */
static uint32_t theirs(struct blkif_back_ring *back)
{
    RING_IDX prod = back->sring->req_prod, cons = back->req_cons;
    uint32_t handled = 0;
    int notify;

    xen_rmb();
    if (RING_REQUEST_PROD_OVERFLOW(back, prod))
        return 0;
    for (; cons != prod; cons++, handled++) {
        struct blkif_request request;
        struct blkif_response *response;
        uint64_t sectors = 0;
        int16_t status = BLKIF_RSP_OKAY;
        uint8_t n;

        RING_COPY_REQUEST(back, cons, &request);
        if (request.nr_segments > BLKIF_MAX_SEGMENTS_PER_REQUEST)
            status = BLKIF_RSP_ERROR;
        for (n = 0; status == BLKIF_RSP_OKAY && n < request.nr_segments; n++) {
            if (request.seg[n].first_sect > request.seg[n].last_sect || request.seg[n].last_sect > 7)
                status = BLKIF_RSP_ERROR;
            sectors += request.seg[n].last_sect - request.seg[n].first_sect + 1u;
        }
        if (sectors > DISK_SECTORS || request.sector_number > DISK_SECTORS - sectors)
            status = BLKIF_RSP_ERROR;
        response = RING_GET_RESPONSE(back, back->rsp_prod_pvt);
        memset(response, 0, sizeof(*response));
        response->id = request.id;
        response->operation = request.operation;
        response->status = status;
        back->rsp_prod_pvt++;
    }
    back->req_cons = cons;
    RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(back, notify);
    (void)notify;
    return handled;
}

static uint32_t ours(struct engine *engine)
{
    int64_t available = xenpy_back_available(&engine->ring, engine->shared);
    uint32_t count = available < BLOCK_BATCH ? (uint32_t)available : BLOCK_BATCH;

    take(engine, count);
    check(answer(engine, count) == 0);
    return count;
}

int main(void)
{
    static double ours_took[ROUNDS], theirs_took[ROUNDS];
    static struct rig rig;
    static uint8_t page[4096] __attribute__((aligned(4096)));
    struct blkif_front_ring front;
    struct blkif_back_ring back;
    struct engine engine;
    uint32_t round, batch;

    rig_open(&rig, 1, BLOCK_PERSISTENT);
    engine = (struct engine){ .config = &rig.config, .state = rig.state, .calls = &rig.calls,
                              .shared = rig.mock.memory };
    check(ring_open(&engine) == 0);
    engine.batch = mmap(NULL, sizeof(*engine.batch), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(engine.batch != MAP_FAILED);
    check(block_batch_open(engine.batch, &rig.config, &rig.calls, &rig.state->counters,
                           &rig.shared, NULL) == 0);
    SHARED_RING_INIT((struct blkif_sring *)page);
    FRONT_RING_INIT(&front, (struct blkif_sring *)page, sizeof(page));
    BACK_RING_INIT(&back, (struct blkif_sring *)page, sizeof(page));
    for (round = 0; round < ROUNDS; round++) {
        double frontend, began = now();

        for (batch = 0; batch < BATCHES; batch++) {
            fill(&front);
            front.sring->rsp_prod = front.req_prod_pvt;
            empty(&front);
        }
        back.req_cons = back.rsp_prod_pvt = front.req_prod_pvt;
        frontend = now() - began;
        began = now();
        for (batch = 0; batch < BATCHES; batch++) {
            fill(&rig.ring);
            check(ours(&engine) == 32);
            empty(&rig.ring);
        }
        ours_took[round] = (now() - began - frontend) / BATCHES / 32;
        began = now();
        for (batch = 0; batch < BATCHES; batch++) {
            fill(&front);
            check(theirs(&back) == 32);
            empty(&front);
        }
        theirs_took[round] = (now() - began - frontend) / BATCHES / 32;
    }
    check(block_batch_close(engine.batch) == 0);
    qsort(ours_took, ROUNDS, sizeof(double), compare);
    qsort(theirs_took, ROUNDS, sizeof(double), compare);
    printf("%.2f %.2f\n", ours_took[ROUNDS / 2], theirs_took[ROUNDS / 2]);
    rig_close(&rig);
    return 0;
}
