/* SPDX-License-Identifier: MIT */
/*
 * The ring's page cannot be read from the moment when the requests were copied out until the
 * answers are written: a second look at a slot is a segmentation fault.  On this mock only: a PV
 * dom0 would unmap a real grant behind Xen's accounting.
 */
#include <sys/mman.h>

#define BLOCK_RING_HIDE(shared) mprotect(shared, 4096, PROT_NONE)
#define BLOCK_RING_SHOW(shared) mprotect(shared, 4096, PROT_READ | PROT_WRITE)

#include "mock_xen.h"

int main(void)
{
    static struct rig rig;
    uint8_t *ours;
    uint32_t round, n;

    rig_open(&rig, 1, BLOCK_PERSISTENT | BLOCK_DISCARD | BLOCK_BARRIER);
    /* The frontend has a mapping of its own, which stays. */
    ours = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, rig.mock.memfd, 0);
    check(ours != MAP_FAILED);
    rig.ring.sring = (struct blkif_sring *)ours;
    rig_start(&rig);
    for (round = 0; round < 200; round++) {
        for (n = 0; n < 32; n++) {
            struct blkif_request *request = rig_request(&rig);

            request->operation = (uint8_t)(n % 7);
            request->nr_segments = 1;
            request->id = n;
            request->seg[0].gref = 4 + n;
            request->seg[0].last_sect = 7;
        }
        rig_push(&rig);
        for (n = 0; n < 32; n++)
            rig_response(&rig);
    }
    check(rig_stop(&rig) == 0);
    munmap(ours, 4096);
    rig_close(&rig);
    return 0;
}
