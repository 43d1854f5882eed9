/* SPDX-License-Identifier: MIT */
/*
 * One input of a coverage-guided fuzzer is a frontend: how its disk was opened, which of its pages
 * it has granted, and all of its memory, the ring with its indices included.  The engine serves
 * what is there and is stopped.  No thread, so that an input does the same each time.
 *
 *     0        flags of block_config; bit 6: the store is one of callbacks
 *     1        bit 0: the ABI; the rest modulo 5: the order of the ring
 *     2        requests in a batch, less 1
 *     3        segments that were offered: none, 1, 32, 256; bits 2 and 3: the size of sectors
 *     4        data pages that may be mapped, less 1
 *     5        which pages are granted, and how
 *     6 to 9   rsp_prod, where the engine begins
 *     10 ...   the frontend's memory
 */
#include "mock_xen.h"

#define HEAD 10u
#define RING_PAGES 16u
/* What an input may set: the largest ring, and pages for segments and data behind it. */
#define ROOM ((RING_PAGES + 8u) * 4096u)

static struct rig rig;
static uint8_t before[ROOM];

static void grant(uint8_t how, uint32_t ring_pages)
{
    uint32_t page;

    for (page = 0; page < PAGES; page++)
        rig.mock.granted[page] = (uint8_t)((page * (how | 1u) >> 3) % 3);
    /* What is read into its ring could not be told from the engine's answers. */
    for (page = 0; page < ring_pages; page++)
        rig.mock.granted[page] = NOT_GRANTED;
}

static void prepare(const uint8_t *data, size_t size)
{
    static const uint16_t offered[] = { 0, 1, 32, 256 };
    struct block_config *config = &rig.config;

    config->flags = data[0] & (BLOCK_PERSISTENT | BLOCK_READONLY | BLOCK_DISCARD | BLOCK_BARRIER |
                               BLOCK_MAPPED | BLOCK_SECURE);
    config->store_kind = data[0] & 64 ? BLOCK_STORE_CALLBACK : BLOCK_STORE_FILE;
    config->abi = data[1] & 1;
    config->ring_pages = 1u << (data[1] >> 1) % 5;
    config->batch = 1 + data[2] % BLOCK_BATCH;
    config->max_indirect = offered[data[3] % 4];
    config->sector_size = 512u << (data[3] >> 2) % 4;
    config->max_mapped = 1u + data[4];
    memcpy(&config->start, data + 6, 4);
    size -= HEAD;
    memset(before, 0, sizeof(before));
    memcpy(before, data + HEAD, size < ROOM ? size : ROOM);
    memcpy(rig.mock.memory, before, ROOM);
    memset(rig.state, 0, sizeof(*rig.state));
    rig.state->version = BLOCK_VERSION;
    rig.state->size = sizeof(*rig.state);
    rig.state->sectors = DISK_SECTORS;
    block_disk_init(&rig.shared);
    grant(data[5], config->ring_pages);
}

/* Each answer is in its request's place, says whose it is, and nothing else. */
static void look(void)
{
    const struct block_config *config = &rig.config;
    uint32_t slot_size = config->abi == BLOCK_ABI_32 ? 108 : 112, entries = 1, i;
    uint32_t id_offset = config->abi == BLOCK_ABI_32 ? 4 : 8;

    while (entries * 2 * slot_size <= config->ring_pages * 4096 - 64)
        entries *= 2;
    check(rig.state->counters.requests <= entries);
    for (i = 0; i < rig.state->counters.requests; i++) {
        size_t at = 64 + (size_t)((config->start + i) & (entries - 1)) * slot_size;
        const uint8_t *answer = rig.mock.memory + at;
        int16_t status;

        memcpy(&status, answer + 10, sizeof(status));
        check(status <= BLOCK_OKAY && status >= BLOCK_EOPNOTSUPP);
        check(memcmp(answer, before + at + id_offset, 8) == 0);
        check(answer[9] == 0);
        if (config->abi == BLOCK_ABI_64)
            check(answer[12] == 0 && answer[13] == 0 && answer[14] == 0 && answer[15] == 0);
        check(memcmp(answer + (config->abi == BLOCK_ABI_32 ? 12 : 16),
                     before + at + (config->abi == BLOCK_ABI_32 ? 12 : 16), 92) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct stat status;
    int result;

    if (size < HEAD)
        return 0;
    if (!rig.state) {
        rig_open(&rig, RING_PAGES, 0);
        check(eventfd_write(rig.config.stop_fd, 1) == 0);
    }
    prepare(data, size);
    result = block_engine_run(&rig.config, rig.state, &rig.calls, rig.mock.memory, &rig.shared,
                              rig.trace, rig.callbacks);
    check(result == 0 || result == -EPROTO);
    check(rig.mock.mapped == 0);
    check(rig.state->counters.grants_mapped == rig.state->counters.grants_unmapped);
    check(rig.state->counters.refused <= rig.state->counters.errors);
    check(fstat(rig.disk, &status) == 0 && status.st_size == DISK_SECTORS * 512);
    look();
    return 0;
}
