/* SPDX-License-Identifier: MIT */
/*
 * What the engine records is what the ring carried: each request once, in order, with its answer;
 * and who reads too late knows how many he has missed.
 *
 *     trace REQUESTS SEED FLAGS BEHIND
 *
 * BEHIND: 0, the reader reads along; 1, it sleeps until all is over; 2, it always reads what is
 * about to be written over.
 * Prints how many records it has read, how many were lost, and how many batches it was told of.
 */
#include <unistd.h>

/* Now and then the reader sleeps in the middle of it, and the engine does not. */
#define XENPY_TRACE_COPYING(i) (pauses && (i) % 200 == 1 ? (void)usleep(300) : (void)0)
static int pauses;

#include "mock_xen.h"

#define MANY 512u

struct reading {
    const struct xenpy_trace *trace;
    uint64_t next, last, count, lost, batches;
    uint32_t over, at_the_edge;
    uint64_t seed;
};

static struct xenpy_trace_record out[MANY];

/* The request number `index`, as both sides draw it. */
static uint64_t sector_of(uint64_t seed, uint32_t index)
{
    uint64_t mixed = seed + (index + 1) * 0x9e3779b97f4a7c15u;

    return draw(&mixed) % (DISK_SECTORS + 64); /* some of them are off the disk */
}

static void look(struct reading *reading)
{
    do {
        uint64_t before = reading->next;
        uint32_t count = xenpy_trace_read(reading->trace, &reading->next, out, MANY), i;
        uint64_t first = reading->next - count;

        reading->lost += first - before;
        if (reading->next == before)
            return;
        for (i = 0; i < count; i++) {
            const struct xenpy_trace_record *record = &out[i];
            const struct blkif_request *request = (const void *)record->request;
            const struct blkif_response *response = (const void *)record->response;
            uint64_t sector = sector_of(reading->seed, record->index);

            check(record->index == (uint32_t)(first + i));
            check(request->id == record->index && response->id == record->index);
            check(request->operation == BLKIF_OP_READ && response->operation == BLKIF_OP_READ);
            check(request->sector_number == sector && request->nr_segments == 1);
            check(response->status ==
                  (sector + 8 > DISK_SECTORS ? BLKIF_RSP_ERROR : BLKIF_RSP_OKAY));
            check(record->detail == 8);
            check(record->request_size == sizeof(*request) && record->response_size == 16);
            check(record->taken && record->answered >= record->taken);
            check(record->taken >= reading->last);
            reading->batches += record->taken != reading->last;
            reading->last = record->taken;
        }
        reading->count += count;
    } while (!reading->at_the_edge || __atomic_load_n(&reading->over, __ATOMIC_ACQUIRE));
}

static void *read_along(void *argument)
{
    struct reading *reading = argument;

    while (!__atomic_load_n(&reading->over, __ATOMIC_ACQUIRE)) {
        uint64_t ahead = xenpy_trace_written(reading->trace) - reading->next;

        if (!reading->at_the_edge || ahead >= XENPY_TRACE_ENTRIES - XENPY_TRACE_BATCH)
            look(reading);
        sched_yield();
    }
    look(reading);
    return NULL;
}

int main(int argc, char **argv)
{
    uint64_t seed = strtoull(argv[2], NULL, 0);
    uint32_t wanted = (uint32_t)strtoul(argv[1], NULL, 0), done = 0, i;
    bool behind = argv[4][0] == '1';
    static struct rig rig;
    struct reading reading;
    pthread_t reader;

    check(argc == 5);
    rig_open(&rig, 1, (uint32_t)strtoul(argv[3], NULL, 0));
    reading = (struct reading){
        .trace = rig.trace, .seed = seed, .at_the_edge = argv[4][0] == '2',
    };
    __atomic_store_n(&rig.trace->wanted, 1, __ATOMIC_RELAXED);
    rig_start(&rig);
    pauses = reading.at_the_edge;
    if (!behind)
        check(pthread_create(&reader, NULL, read_along, &reading) == 0);
    while (done < wanted) {
        uint32_t count = 1 + done % 32;

        for (i = 0; i < count; i++) {
            struct blkif_request *request = rig_request(&rig);

            request->operation = BLKIF_OP_READ;
            request->nr_segments = 1;
            request->id = done + i;
            request->sector_number = sector_of(seed, done + i);
            request->seg[0].gref = rig.first_page + i;
            request->seg[0].last_sect = 7;
        }
        rig_push(&rig);
        for (i = 0; i < count; i++)
            (void)rig_response(&rig);
        done += count;
        /* Whoever knows that he is answered finds the record. */
        check(xenpy_trace_written(rig.trace) == done);
    }
    __atomic_store_n(&rig.trace->wanted, 0, __ATOMIC_RELAXED);
    check(rig_stop(&rig) == 0);
    if (behind) {
        look(&reading);
    } else {
        __atomic_store_n(&reading.over, 1, __ATOMIC_RELEASE);
        check(pthread_join(reader, NULL) == 0);
    }
    check(reading.next == done && reading.count + reading.lost == done);
    printf("%llu %llu %llu of %u\n", (unsigned long long)reading.count,
           (unsigned long long)reading.lost, (unsigned long long)reading.batches, done);
    rig_close(&rig);
    return 0;
}
