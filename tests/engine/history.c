/* SPDX-License-Identifier: MIT */
/*
 * A random history of good requests against a model: the same statuses, the same bytes.
 *
 *     history ROUNDS SEED FLAGS RING_PAGES
 */
#include "mock_xen.h"

struct sent {
    uint8_t operation;
    uint64_t sector;
    uint32_t sectors, segments;
    uint32_t page[256];
    uint8_t first[256], last[256];
    bool used;
};

static uint8_t model[DISK_SECTORS * 512];
static uint8_t claimed[DISK_SECTORS]; /* sectors that a request of this round uses */

static void carry_out(struct rig *rig, const struct sent *sent)
{
    uint8_t *at = model + sent->sector * 512;
    uint32_t n;

    for (n = 0; n < sent->segments; n++) {
        uint8_t *page = mock_page(&rig->mock, sent->page[n]) + sent->first[n] * 512;
        size_t length = (size_t)(sent->last[n] - sent->first[n] + 1) * 512;

        if (sent->operation == BLKIF_OP_READ)
            check(memcmp(page, at, length) == 0);
        at += length;
    }
}

int main(int argc, char **argv)
{
    uint64_t seed = strtoull(argv[2], NULL, 0), total = 0;
    uint32_t rounds = (uint32_t)strtoul(argv[1], NULL, 0), round, i, n;
    static struct rig rig;
    static struct sent sent[512];

    check(argc == 5);
    rig_open(&rig, (uint32_t)strtoul(argv[4], NULL, 0),
             (uint32_t)strtoul(argv[3], NULL, 0) | BLOCK_DISCARD | BLOCK_BARRIER);
    rig_start(&rig);
    for (round = 0; round < rounds; round++) {
        uint32_t free_page = rig.first_page, count = 0, wanted = 1 + below(&seed, 40);

        memset(claimed, 0, sizeof(claimed));
        while (count < wanted && !RING_FULL(&rig.ring)) {
            struct sent *one = &sent[count];
            bool indirect = below(&seed, 8) == 0;
            uint32_t sectors = 0, segments = 1 + below(&seed, indirect ? 64 : 11);
            struct blkif_request *request;
            struct blkif_request_segment *list;

            if (free_page + segments + 1 > PAGES)
                break;
            one->segments = segments;
            for (n = 0; n < segments; n++) {
                one->page[n] = free_page + n;
                one->first[n] = (uint8_t)below(&seed, 8);
                one->last[n] = (uint8_t)(one->first[n] + below(&seed, 8u - one->first[n]));
                sectors += one->last[n] - one->first[n] + 1u;
            }
            one->sector = below(&seed, DISK_SECTORS - sectors + 1);
            /* Sometimes right behind the one before, to be carried out together. */
            if (count && below(&seed, 3) == 0)
                one->sector = sent[count - 1].sector + sent[count - 1].sectors;
            one->sectors = sectors;
            if (one->sector + sectors > DISK_SECTORS ||
                memchr(claimed + one->sector, 1, sectors))
                break; /* blkif promises no order among requests in flight */
            memset(claimed + one->sector, 1, sectors);
            one->operation = below(&seed, 2) ? BLKIF_OP_READ : BLKIF_OP_WRITE;
            if (!indirect && below(&seed, 10) == 0)
                one->operation = BLKIF_OP_WRITE_BARRIER;
            request = rig_request(&rig);
            list = request->seg;
            if (indirect) {
                struct blkif_request_indirect *other = (void *)request;

                other->operation = BLKIF_OP_INDIRECT;
                other->indirect_op = one->operation;
                other->nr_segments = (uint16_t)segments;
                other->id = count;
                other->sector_number = one->sector;
                other->indirect_grefs[0] = free_page + segments;
                list = (void *)mock_page(&rig.mock, free_page + segments);
            } else {
                request->operation = one->operation;
                request->nr_segments = (uint8_t)segments;
                request->id = count;
                request->sector_number = one->sector;
            }
            for (n = 0; n < segments; n++) {
                list[n].gref = one->page[n];
                list[n].first_sect = one->first[n];
                list[n].last_sect = one->last[n];
            }
            if (one->operation != BLKIF_OP_READ) {
                uint8_t *at = model + one->sector * 512;

                for (n = 0; n < segments; n++) {
                    uint8_t *page = mock_page(&rig.mock, one->page[n]) + one->first[n] * 512;
                    size_t length = (size_t)(one->last[n] - one->first[n] + 1) * 512, b;

                    for (b = 0; b < length; b += 8) {
                        uint64_t word = draw(&seed);

                        memcpy(page + b, &word, 8);
                    }
                    memcpy(at, page, length);
                    at += length;
                }
            }
            one->used = true;
            free_page += segments + 1;
            count++;
        }
        rig_push(&rig);
        for (i = 0; i < count; i++) {
            struct blkif_response response = rig_response(&rig);

            check(response.id < count && sent[response.id].used);
            check(response.status == BLKIF_RSP_OKAY);
            sent[response.id].used = false;
            carry_out(&rig, &sent[response.id]);
        }
        total += count;
    }
    check(rig_stop(&rig) == 0);
    check(rig.state->counters.requests == total && rig.state->counters.errors == 0);
    check(rig.state->req_cons == rig.state->rsp_prod);
    for (i = 0; i < DISK_SECTORS; i += 8) {
        uint8_t page[4096];

        check(pread(rig.disk, page, sizeof(page), (off_t)i * 512) == sizeof(page));
        check(memcmp(page, model + (size_t)i * 512, sizeof(page)) == 0);
    }
    rig_close(&rig);
    printf("%llu requests\n", (unsigned long long)total);
    return 0;
}
